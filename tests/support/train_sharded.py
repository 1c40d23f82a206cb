"""Train by a recipe with FSDP on CPUs, in sessions that end after STOP steps and one to the end:
RECIPE OUTPUT PRECISION [STOP …], under `accelerate launch` with fsdp.yaml.

Accelerate keeps FSDP for GPUs. Here it is told that its CPU processes are such; PyTorch itself shares models out on
CPUs as well.
"""

import sys
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from hf_entmax_asr.training import load_recipe, train


def sharding_accelerator(precision: str) -> Accelerator:
    plugin = FullyShardedDataParallelPlugin()  # by what the launcher has put into the environment
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    if precision != "no":
        plugin.set_mixed_precision(precision)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


if __name__ == "__main__":
    recipe, output, precision, *stops = sys.argv[1:]
    accelerator = sharding_accelerator(precision)
    template = Path(__file__).parents[2] / "model_cards" / "template.md"
    for session, stop in enumerate([*map(int, stops), None]):
        accelerator.free_memory()
        result = train(
            load_recipe(recipe),
            output,
            resume=session > 0,
            stop_after=stop,
            card_template=template.read_text(encoding="utf-8"),
            accelerator=accelerator,
        )
        parameters = list(accelerator._models[0].parameters())
        mine = sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)
        if accelerator.is_main_process:
            print(f"finished {result.finished} after {result.step} steps, {mine:.2f} of the weights here")
    accelerator.end_training()

"""Generation of models whose weights two processes share out (fully_shard): prints a line for each that went well."""

import multiprocessing
import sys
import tempfile

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from support.small_baselines import baseline
from support.small_models import features, small_model


def generate_sharded(rank: int, rendezvous: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    x, mask = features(seed=1 + rank)
    options = {"attention_mask": mask, "max_new_tokens": 5 + 3 * rank, "num_beams": 2}  # texts of unequal length
    for name, model, layers_too in (
        ("whole", small_model(lively=True), False),
        ("layer by layer", small_model(lively=True), True),
        ("transducer", baseline("sa_t"), False),
    ):
        expected = model.generate(x, **options)
        if layers_too:
            for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        shares = [parameter.to_local().numel() / parameter.numel() for parameter in model.parameters()]
        assert min(shares) < 1, name
        assert torch.equal(model.generate(x, **options), expected), name
        model(x, attention_mask=mask, labels=expected).loss.backward()  # training goes on
        assert torch.equal(model.generate(x, **options), expected), name
        if rank == 0:
            print(name, flush=True)


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")  # imports are done
    with tempfile.TemporaryDirectory() as folder:
        processes = [fork.Process(target=generate_sharded, args=(rank, f"{folder}/rendezvous")) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    sys.exit(any(process.exitcode for process in processes))

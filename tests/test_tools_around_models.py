"""What people put around models of transformers: offloading, quantised layers, LoRA."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from hf_entmax_asr import EntmaxAsrForConditionalGeneration
from support.small_baselines import baseline
from support.small_models import features, small_model, targets

BASELINES = ("las", "wav2letter", "jasper", "rnn_t", "sa_t")  # each kind of encoder and head
X, MASK = features()


def generated(model) -> torch.Tensor:
    return model.generate(X, attention_mask=MASK, max_new_tokens=6)


def loss_of(model) -> float:
    with torch.no_grad():
        return model(input_features=X, attention_mask=MASK, labels=targets()).loss.item()


# Offloading


@pytest.mark.parametrize(("scale", "to_disk"), [(False, False), (True, False), (True, True)])
def test_offloaded_weights_are_loaded_where_they_are_read(scale, to_disk, tmp_path):
    from accelerate import cpu_offload, disk_offload

    model = small_model(lively=True, entmax_logit_scale=scale, ctc_loss_weight=0.3)
    expected, loss = generated(model), loss_of(model)
    offload = partial(disk_offload, offload_dir=str(tmp_path)) if to_disk else cpu_offload
    offload(model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(generated(model), expected)
    assert loss_of(model) == loss


def test_a_checkpoint_too_large_for_the_memory_is_spread_by_device_map(tmp_path):
    model = small_model(lively=True)
    model.save_pretrained(tmp_path / "whole")
    spread = EntmaxAsrForConditionalGeneration.from_pretrained(
        tmp_path / "whole", device_map="auto", max_memory={"cpu": 20_000}, offload_folder=tmp_path / "disk"
    )
    assert {parameter.device.type for parameter in spread.parameters()} == {"cpu", "meta"}
    assert torch.equal(generated(spread), generated(model))
    assert loss_of(spread) == loss_of(model)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_offloaded_as_well(name):
    from accelerate import cpu_offload

    model = baseline(name)
    expected = generated(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(generated(model), expected)


# Quantised layers


# PyTorch sends its users to torchao, which is no requirement of the tests: see docs/training.md.
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamically_quantised_models_compute_nearly_the_same():
    whole = {"entmax_asr": small_model(lively=True, ctc_loss_weight=0.3)} | {name: baseline(name) for name in BASELINES}
    for name, model in whole.items():
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM, nn.LSTMCell}, torch.qint8)
        assert any("quantized" in type(module).__module__ for module in quantised.modules()), name
        assert loss_of(quantised) == pytest.approx(loss_of(model), rel=0.05), name
        assert generated(quantised).shape[0] == len(X), name


# LoRA


# peft asks for a property of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_trains_a_few_weights_saves_them_and_merges_them(tmp_path):
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    model = small_model(lively=True)
    expected = generated(model)
    settings = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=2, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(copy.deepcopy(model), settings)
    assert torch.equal(adapted.generate(input_features=X, attention_mask=MASK, max_new_tokens=6), expected)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    before = loss_of(adapted)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_features=X, attention_mask=MASK, labels=targets()).loss.backward()
        optimizer.step()
    after = loss_of(adapted)
    assert after < before
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert loss_of(loaded) == after
    assert loss_of(loaded.merge_and_unload()) == pytest.approx(after, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["rnn_t", "sa_t", "sync_transformer", "las"])
def test_lora_on_all_linear_layers_of_a_baseline_leaves_its_output_layer(name, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = baseline(name)
    output = model.get_output_embeddings()
    table = model.get_input_embeddings()
    assert (table.num_embeddings, output.out_features) == (model.config.vocab_size,) * 2
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).train()
    adapted(input_features=X, attention_mask=MASK, labels=targets()).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("lm_head" in name for name in trained)
    adapted.save_pretrained(tmp_path)

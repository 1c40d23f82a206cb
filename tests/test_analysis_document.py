"""The document of an analysis and its JSON: what is written is read, and what is no analysis is refused by name."""

import json
import math

import pytest
import torch

from hf_entmax_asr.analysis.document import (
    AnalysisDocument,
    CrossMeasures,
    DecoderMeasures,
    DocumentError,
    EncoderMeasures,
    ProbeFailure,
    load_analysis,
    matrix,
    measured,
    rounded,
    save_analysis,
    tensor_of,
    vector,
)
from support.analysis_document import document, document_json

ENCODER = "encoder.layers.0.self_attn"


@pytest.mark.parametrize("options", [{}, {"monotonic": False, "labels": False}, {"layers": 12, "heads": 8}])
def test_what_is_written_is_read(options, tmp_path):
    given = document(**options)
    path = save_analysis(given, tmp_path / "new" / "analysis.json")
    assert load_analysis(path) == given
    assert [file.name for file in path.parent.iterdir()] == ["analysis.json"]


def test_the_json_has_the_keys_of_version_1():
    written = document().as_dict()
    expected = document_json()
    expected["model"] |= {f"{kind}_heads_per_layer": None for kind in ("encoder", "decoder", "cross")}
    expected["model"] |= {f"{side}_map_groups": None for side in ("encoder", "decoder")}
    assert written == expected
    assert "step" not in written
    assert "same_phoneme_lift" not in document(labels=False).as_dict()["modules"][ENCODER]
    assert list(written["modules"][ENCODER]) == [
        *("kind", "layer", "heads", "zero_share", "support_size", "entropy_nats", "verticality", "uniform", "alpha"),
        *("cad", "distance_positions", "curve", "relative_cad", "same_phoneme_lift", "same_place_lift", "role"),
    ]


def test_modules_stand_by_kind_in_the_order_of_their_layers():
    given = document_json(layers=3)
    given["modules"] = dict(reversed(given["modules"].items()))
    read = AnalysisDocument.from_dict(given)
    assert [(type(module), module.layer) for module in read.encoder] == [(EncoderMeasures, n) for n in range(3)]
    assert [type(module) for module in read.decoder] == [DecoderMeasures]
    assert [(type(module), module.kind) for module in read.cross] == [(CrossMeasures, "monotonic")]


def test_further_keys_are_passed_over_and_what_the_oldest_documents_lack_is_none():
    given = document_json() | {"weather": "fine", "step": 7}
    given["modules"][ENCODER]["colour"] = ["red"]
    given["probe"] = {"error": "one speaker"}
    read = AnalysisDocument.from_dict(given)
    assert (read.step, read.probe) == (7, ProbeFailure(error="one speaker"))
    assert read.model.encoder_map_groups is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 2, "no analysis of version 1: its version is 2"),
        (["version"], ..., "its version is None"),
        (["agreement"], ..., "the key agreement is missing"),
        (["model", "firing_rule"], ..., "the key model.firing_rule is missing"),
        (["modules", ENCODER, "role"], ..., f"the key modules.{ENCODER}.role is missing"),
        (["modules", ENCODER, "uniform", "cad"], ..., f"the key modules.{ENCODER}.uniform.cad is missing"),
        (["probe", "accuracy"], ..., "the key probe.accuracy is missing"),
        (["utterances"], 5.5, "utterances must be a whole number, not '5.5'"),
        (["utterances"], True, "utterances must be a whole number, not 'True'"),
        (["audio_seconds"], "long", "audio_seconds must be a number, not 'long'"),
        (["audio_seconds"], None, "audio_seconds must be a number, not 'None'"),
        (["checkpoint"], 3, "checkpoint must be text"),
        (["modules"], [], "modules must be an object, not '[]'"),
        (["modules", ENCODER, "cad", 1], "x", f"modules.{ENCODER}.cad[1] must be a number, not 'x'"),
        (["modules", ENCODER, "curve", 0], 1.0, f"modules.{ENCODER}.curve[0] must be a list, not '1.0'"),
        (["modules", ENCODER, "role", 0], "odd", f"modules.{ENCODER}.role[0] must be 'linguistic' or 'phonetic' or"),
        (["modules", ENCODER, "kind"], "odd", f"modules.{ENCODER} must be an object with kind 'encoder' or"),
        (["agreement", "heads", 0], ["a"], "agreement.heads[0] must be a list of 2"),
        (["probe"], {"colour": 1}, "probe must be an object with disjoint_by or an object with error or null"),
    ],
)
def test_what_is_no_analysis_is_refused(path, value, message, tmp_path):
    given = json.loads(json.dumps(document_json()))
    *outer, last = path
    place = given
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "analysis.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(DocumentError) as caught:
        load_analysis(file)
    assert str(caught.value).startswith(f"{file} is no analysis")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"{", "Expecting"), (b"\x80", "codec"), (b"[]", "it holds a list")],
)
def test_files_that_hold_no_json_object(content, message, tmp_path):
    file = tmp_path / "analysis.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DocumentError, match=message) as caught:
        load_analysis(file)
    assert str(file) in str(caught.value)


def test_numbers_are_rounded_and_what_json_cannot_hold_is_none():
    assert rounded(1 / 3) == 0.333333
    assert [measured(value) for value in (1 / 3, math.nan, math.inf, -math.inf)] == [0.333333, None, None, None]
    values = torch.tensor([[1.0, math.nan], [1 / 3, 1_234_567.0]], dtype=torch.float64)
    assert vector(values[0]) == [1.0, None]
    assert matrix(values) == [[1.0, None], [0.333333, 1_234_570.0]]
    assert tensor_of(matrix(values)[0]).isnan().tolist() == [False, True]
    assert tensor_of([[None, 2.0]]).dtype == torch.float64

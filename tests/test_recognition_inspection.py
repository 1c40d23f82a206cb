"""The whole analysis of a model over a data set, and scripts/analyze.py."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_entmax_asr.analysis import Interval, diagonality
from hf_entmax_asr.analysis.document import VERSION, AnalysisDocument, ProbeFailure, load_analysis
from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.recognition import DataError, SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.inspection import _Inspection, analyze
from hf_entmax_asr.recognition.report_examples import example_of
from hf_entmax_asr.recognition.utterances import prepare_split
from hf_entmax_asr.training import train
from hf_entmax_asr.training.analysis_callback import AnalysisCallback
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=12, test=9)


@pytest.fixture(scope="module")
def checkpoint(tones, tmp_path_factory) -> Path:
    recipe = tiny_recipe(
        tones,
        data={"path": str(tones), "validation_split": None},
        schedule={"max_steps": 2, "warmup_steps": 1},
        model={"encoder_layers": 2},
    )
    return train(recipe, tmp_path_factory.mktemp("run") / "run").last.resolve()


@pytest.fixture
def recogniser(checkpoint):
    return load_recogniser(str(checkpoint), "cpu")


@pytest.fixture(scope="module")
def rows(tones):
    return load_folder(tones)["test"]


def tone_labels(rows) -> dict[str, list[Interval]]:
    """Each letter is a tone of 120 ms behind 100 ms of silence; spaces are silent."""
    return {
        row["id"]: [Interval(0.1 + 0.12 * i, 0.22 + 0.12 * i, letter.strip()) for i, letter in enumerate(row["text"])]
        for row in rows
    }


def write_ctm(rows, path: Path) -> None:
    lines = [
        f"{name} 1 {i.start:.2f} {i.end - i.start:.2f} {i.label or 'sil'}\n"
        for name, intervals in tone_labels(rows).items()
        for i in intervals
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def same(a, b, rel=2e-4):
    """Equal but for rounding in the model: padding changes the order of its sums."""
    one, other = dict(leaves(a)), dict(leaves(b))
    assert one.keys() == other.keys()
    for path, value in one.items():
        if isinstance(value, float):
            assert other[path] == pytest.approx(value, rel=rel, abs=1e-5), path
        else:
            assert other[path] == value, path


def test_document(recogniser, rows):
    model, processor = recogniser
    done = []
    document = analyze(model, processor, rows, labels=tone_labels(rows), progress=done.append)
    stored = json.loads(json.dumps(document.as_dict(), allow_nan=False))
    assert stored["version"] == VERSION
    assert AnalysisDocument.from_dict(stored) == document
    assert (document.utterances, sum(done), document.skipped) == (9, 9, {})
    assert document.seconds_per_position == 0.04
    assert document.audio_seconds == pytest.approx(sum(rows["duration"]))
    kinds = {name: module.kind for name, module in document.modules.items()}
    assert kinds == {
        "encoder.layers.0.self_attn": "encoder",
        "encoder.layers.1.self_attn": "encoder",
        "decoder.layers.0.self_attn": "decoder",
        "decoder.layers.0.encoder_attn": "monotonic",
    }
    encoder = document.modules["encoder.layers.1.self_attn"]
    assert encoder.alpha == pytest.approx(model.alphas()["encoder.layers.1.self_attn"].tolist(), rel=1e-5)
    assert all(0 <= value <= 1 for values in (encoder.cad, encoder.verticality, encoder.zero_share) for value in values)
    assert len(encoder.curve) == encoder.heads == 2
    assert len(encoder.curve[0]) == len(document.curve_r) == 101
    assert encoder.curve[0][-1] == pytest.approx(1, abs=1e-5)
    assert len(encoder.role) == 2
    monotonic = document.modules["decoder.layers.0.encoder_attn"]
    assert monotonic.gate == pytest.approx(model.gates()["decoder.layers.0.encoder_attn"].tolist(), rel=1e-5)
    assert not hasattr(monotonic, "cad")
    assert document.agreement.heads[3] == ("encoder.layers.1.self_attn", 1)
    assert document.agreement.js_bits[3][3] == 0
    assert document.monotonic.heads == [(0, 0), (0, 1)]
    assert document.monotonic.order_violations == [0, 0]
    assert document.histogram.encoder.total > 0
    phonemes = document.phonemes
    assert phonemes.classes == ["B", "F", "D", "a", "c", "e", "SIL"]
    assert phonemes.places == ["labial", "labial", "alveolar", "other", "other", "other", "silence"]
    lift = phonemes.attention["encoder.layers.0.self_attn"].lift
    assert [len(lift), len(lift[0]), len(lift[0][0])] == [2, 7, 7]
    known = [value for head in lift for row in head for value in row if value is not None]
    assert sum(known) / len(known) == pytest.approx(1, abs=0.5)  # after two steps of training: no preference
    assert document.probe.disjoint_by == "sentence"
    assert len(document.probe.accuracy) == 3
    assert document.probe.train_frames > document.probe.test_frames > 0
    assert all(a > document.probe.majority_rate for a in document.probe.accuracy)  # tones are easy


def test_values_are_means_of_the_pure_functions(recogniser, rows):
    model, processor = recogniser
    document = analyze(model, processor, rows)
    collate = SpeechSeq2SeqCollator(processor)
    total = torch.zeros(2, dtype=torch.float64)
    for row in rows:
        batch = collate([row])
        maps = model.model.encoder(batch["input_features"], output_attentions=True).attentions
        total += diagonality(maps[1].detach())[0]
    assert document.modules["encoder.layers.1.self_attn"].cad == pytest.approx((total / 9).tolist(), rel=1e-5)


def test_batches_do_not_matter(recogniser, rows):
    model, processor = recogniser
    one = analyze(model, processor, rows, labels=tone_labels(rows), frames_per_batch=1)
    all_at_once = analyze(model, processor, rows, labels=tone_labels(rows), frames_per_batch=100_000)
    same(one.as_dict(), all_at_once.as_dict())


def test_without_labels(recogniser, rows):
    document = analyze(*recogniser, rows)
    assert document.phonemes is None
    assert document.probe is None
    encoder = document.encoder[0]
    assert encoder.same_phoneme_lift is None
    assert "same_phoneme_lift" not in document.as_dict()["modules"]["encoder.layers.0.self_attn"]
    assert set(encoder.role) <= {"linguistic", None}


def test_utterances_that_cannot_be_used_are_counted(recogniser, rows):
    labels = tone_labels(rows)
    unlabelled, wrong = rows["id"][0], rows["id"][1]
    del labels[unlabelled]
    labels[wrong] = [Interval(0, 99, "b")]
    longest = max(rows["duration"])
    document = analyze(*recogniser, rows, labels=labels, max_seconds=longest - 1e-6)
    long = [row["id"] for row in rows if row["duration"] == longest]
    skipped = dict(document.skipped)
    assert skipped.pop(f"longer than {longest - 1e-6:g} s") == long
    assert document.utterances == 9 - len(long)
    reasons = {"no phonemes: not labelled": unlabelled, "no phonemes: labelled beyond the end of the audio": wrong}
    assert skipped == {reason: [name] for reason, name in reasons.items() if name not in long}
    with pytest.raises(DataError, match=r"none of the 9 utterances is at most 0\.1 s long"):
        analyze(*recogniser, rows, max_seconds=0.1)
    with pytest.raises(DataError, match="none of the 0 utterances"):
        analyze(*recogniser, rows.select([]))


def test_one_utterance_has_no_probe(recogniser, rows):
    document = analyze(*recogniser, rows.select([0]), labels=tone_labels(rows))
    assert isinstance(document.probe, ProbeFailure)
    assert "two speakers, or two different sentences" in document.probe.error
    assert document.phonemes is not None


def test_the_model_is_left_as_it_was(recogniser, rows):
    model, processor = recogniser
    model.config.monotonic_decoding = "soft"
    model.train()
    before = torch.get_rng_state()
    document = analyze(model, processor, rows.select([0, 1]))
    assert document.monotonic.order_violations == [0, 0]  # measured with hard stops
    assert model.config.monotonic_decoding == "soft"
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_full_attention_and_other_transforms(tones, rows, tmp_path):
    options = {"cross_attention": "full", "encoder_transform": "softmax", "head_regularizer": "none"}
    recipe = tiny_recipe(
        tones,
        data={"path": str(tones), "validation_split": None},
        schedule={"max_steps": 1, "warmup_steps": 1},
        model=options,
    )
    document = analyze(*load_recogniser(str(train(recipe, tmp_path / "run").last), "cpu"), rows)
    assert document.monotonic is None
    cross = document.modules["decoder.layers.0.encoder_attn"]
    assert cross.kind == "cross"
    assert all(0 < value <= cross.uniform.entropy_nats for value in cross.entropy_nats)
    encoder = document.modules["encoder.layers.0.self_attn"]
    assert encoder.alpha is None
    assert encoder.zero_share == [0, 0]


def test_an_example_is_what_generate_gives(recogniser, rows):
    model, processor = recogniser
    example = example_of(model, processor, rows[0], head=(0, 1))
    batch = SpeechSeq2SeqCollator(processor)([{"audio": rows[0]["audio"]}])
    result = model.generate(**batch, return_dict_in_generate=True, max_new_tokens=len(example.tokens), num_beams=1)
    assert processor.tokenizer.convert_ids_to_tokens(result.sequences[0, 1:].tolist()) == example.tokens
    assert torch.equal(result.boundaries[0][0], example.boundaries[0])
    assert example.maps[1].shape == (2, len(example.maps[0][0]), len(example.maps[0][0]))
    assert example.features.shape == batch["input_features"].shape[1:]
    assert (example.reference, example.head, example.sampling_rate) == (rows["text"][0], (0, 1), 16000)


def test_memory_does_not_grow_with_the_data(recogniser, rows):
    """What is kept between batches: a few numbers per head, as many after nine utterances as after one."""
    model, processor = recogniser
    utterances = prepare_split(rows, processor)
    inspection = _Inspection(model, processor, tone_labels(rows))
    inspection.plan_probe(utterances)
    assert {name for name, value in vars(inspection.meters).items() if hasattr(value, "__dict__")} <= {*METERS, "model"}
    sizes = []
    for index in range(9):
        inspection.update(utterances, [index], "train")
        kept = [getattr(inspection.meters, name) for name in METERS]
        sizes.append(numbers([*kept, inspection.too_long, inspection.labels.refused]))
    assert len(set(sizes)) == 1
    assert sizes[0] > 1000


METERS = ("kinds", "means", "sparsity", "agreement", "histograms", "monotonic", "phonemes", "probe")


def numbers(value) -> int:
    """How many numbers hang on an object."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, dict):
        return sum(map(numbers, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(numbers, value))
    return sum(map(numbers, vars(value).values())) if hasattr(value, "__dict__") else 1


# while training


def test_callback_of_the_trainer(recogniser, rows, tones, tmp_path):
    model, processor = recogniser
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    callback = AnalysisCallback(processor, rows, tmp_path / "analysis", every_steps=2, max_utterances=3)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )

    def weights(callbacks):
        model.load_state_dict(before, strict=False)
        trainer = Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=SpeechSeq2SeqCollator(processor),
            callbacks=callbacks,
        )
        trainer.train()
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    watched = weights([callback])
    files = sorted((tmp_path / "analysis").glob("step-*"))
    assert [file.name for file in files] == ["step-00000002.json", "step-00000004.json"]
    documents = list(map(load_analysis, files))
    assert [(d.step, d.utterances) for d in documents] == [(2, 3), (4, 3)]
    entropies = [d.encoder[0].entropy_nats for d in documents]
    assert entropies[0] != entropies[1]
    alone = weights([])
    assert all(torch.equal(watched[name], alone[name]) for name in alone)  # watching changes nothing


def test_callback_refuses_what_would_never_write(recogniser, rows):
    _, processor = recogniser
    with pytest.raises(ValueError, match="every_steps = 0"):
        AnalysisCallback(processor, rows, "x", every_steps=0)
    with pytest.raises(ValueError, match="no utterances"):
        AnalysisCallback(processor, rows.select([]), "x")


# scripts/analyze.py


def test_script(call, checkpoint, tones, rows, tmp_path):
    write_ctm(rows, tmp_path / "labels" / "tones.ctm")
    status, out, err = call(
        "analyze",
        checkpoint,
        tones,
        "--out",
        tmp_path / "report",
        "--labels",
        tmp_path / "labels",
        "--max-utterances",
        8,
    )
    assert status == 0, err
    document = load_analysis(tmp_path / "report" / "analysis.json")
    assert (document.utterances, document.checkpoint) == (8, str(checkpoint))
    assert document.data == f"{tones}, test"
    assert not [path for path in (tmp_path / "report").iterdir() if "partial" in path.name]
    assert "8 utterances" in out
    assert "no head ever stepped to the left" in out
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 2
    assert rows["text"][0] in page
    assert (tmp_path / "report" / "alphas.png").is_file()  # from the history of the run
    for module in document.encoder:
        row = next(line for line in out.splitlines() if line.split()[:1] == [str(module.layer)])
        assert float(row.split()[1]) == pytest.approx(sum(module.cad) / len(module.cad), abs=6e-4)


def test_script_tells_it_in_the_card(call, checkpoint, tones, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    arguments = (folder, tones, "--out", tmp_path / "report", "--json-only", "--card")
    status, _, err = call("analyze", *arguments)
    assert status == 1  # before anything is read
    assert f"{folder} is no local folder with a README.md" in err
    assert not (tmp_path / "report").exists()
    card = folder / "README.md"
    card.write_text("# Name\n\n## What the attention does\n\nNot measured.\n\n## Training\n", encoding="utf-8")
    status, out, err = call("analyze", *arguments)
    assert status == 0, err
    assert f"written: {card}" in out
    found = findings(load_analysis(tmp_path / "report" / "analysis.json"))
    told = "\n".join(f"- {sentence}" for sentence in found)
    assert f"of {tones.name}, test.\n\n{told}\n\n## Training\n" in card.read_text(encoding="utf-8")
    assert "Not measured" not in card.read_text(encoding="utf-8")


def test_script_refuses_words_for_phonemes(call, checkpoint, tones, rows, tmp_path):
    lines = [f"{rows['id'][0]} 1 {i / 100:.2f} 0.01 word{i}\n" for i in range(201)]
    (tmp_path / "words.ctm").write_text("".join(lines))
    status, _, err = call("analyze", checkpoint, tones, "--out", tmp_path / "report", "--labels", tmp_path)
    assert status == 1
    assert "the labels have 201 classes" in err


def test_script_names_what_is_wrong_with_the_corpus(call, checkpoint, tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\nnone.wav,a\n")
    status, _, err = call("analyze", checkpoint, tmp_path, "--out", tmp_path / "report", "--split", "train")
    assert status == 1
    assert "listed but missing" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "dev"], "has no split 'dev'; it has test, train"),
        (["--labels", "/nowhere"], "there is no folder /nowhere"),
        (["--max-utterances", "0"], "0 utterances are asked for"),
        (["--labels", "pocketsphinx", "--json-only"], "hf_entmax_asr[phonemes]"),
    ],
)
def test_script_refuses(call, checkpoint, tones, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    status, _, err = call("analyze", checkpoint, tones, "--out", tmp_path / "report", *arguments)
    assert status == 1
    assert message in err
    assert not (tmp_path / "report").exists()

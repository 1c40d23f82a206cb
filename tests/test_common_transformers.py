"""transformers' own common tests (ModelTesterMixin, GenerationTesterMixin, ConfigTester), run against our models.

`make test` fetches them (support/fetch_transformers_tests.py); nothing of theirs is kept here. Each override below
carries its reason; the skips are theirs and name what this model has no part in (other modalities, fused kernels,
accelerators).
"""

import importlib
import os
import sys
import types
import unittest
import unittest.mock

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hf_entmax_asr import (
    EntmaxAsrConfig,
    EntmaxAsrFeatureExtractor,
    EntmaxAsrForConditionalGeneration,
    EntmaxAsrModel,
    EntmaxAsrProcessor,
)
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.fetch_transformers_tests import GENERATION, folder_of_tests

FOLDER = folder_of_tests()
if not (FOLDER / "test_modeling_common.py").exists():
    reason = f"transformers' own tests are not in {FOLDER}: run python tests/support/fetch_transformers_tests.py"
    if os.environ.get("CI") == "true":
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)
HAS_GENERATION = (FOLDER / GENERATION).exists()


def package(name: str, **contents) -> types.ModuleType:
    """A package made of what is given, under the name that their files import it by."""
    module = types.ModuleType(name)
    module.__path__ = [str(FOLDER.joinpath(*name.split(".")[1:]))]
    module.__dict__.update(contents)
    sys.modules[name] = module
    return module


def load_their_tests():
    """Their three modules. What they import beside each other and we do not run is replaced by empty classes."""
    package("tests")
    package("tests.exporters")  # export to ONNX and ExecuTorch, which this package does not offer
    empty = {name: type(name, (), {}) for name in ("ExportTesterMixin", "ExportGenerateTesterMixin")}
    package("tests.exporters.test_export", **empty)
    package("tests.utils")  # values that differ from the defaults of every configuration, for ConfigTester
    kwargs = {"return_dict": False, "output_hidden_states": True, "output_attentions": True, "dtype": "float16"}
    kwargs |= {"architectures": ["BertModel"], "id2label": {0: "label"}, "label2id": {"label": "0"}}
    package("tests.utils.test_configuration_utils", config_common_kwargs=kwargs)
    package("tests.generation")
    if not HAS_GENERATION:
        package("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    # where the processor's tests find the Hub's files that they use with images and chats
    package("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    names = ("modeling_common", "configuration_common", "sequence_feature_extraction_common", "processing_common")
    modules = [importlib.import_module(f"tests.test_{name}") for name in names]
    return [*modules, importlib.import_module("tests.generation.test_utils")]


modeling_common, configuration_common, extractor_common, processor_common, generation_common = load_their_tests()


# Their retry decorators return what unittest wants to be None.
pytestmark = pytest.mark.filterwarnings("ignore:It is deprecated to return a value that is not None:DeprecationWarning")

# Where their training tests look up which classes have no loss.
MODEL_MAPPING_NAMES.setdefault(EntmaxAsrConfig.model_type, EntmaxAsrModel.__name__)


class EntmaxAsrModelTester:
    """Small models and inputs, in the form that the common tests ask for."""

    batch_size = 3
    seq_length = 7  # decoder tokens
    frames = 24
    encoder_seq_length = key_length = 6  # positions: a quarter of the frames
    num_mel_bins = 16
    num_hidden_layers = 2
    hidden_size = 16
    num_attention_heads = 2
    vocab_size = 99
    is_training = True
    ctc_loss_weight = 0.3
    with_input_ids = False  # whether the decoder tokens are found under the name that models of text use, too

    def get_config(self) -> EntmaxAsrConfig:
        return EntmaxAsrConfig(
            vocab_size=self.vocab_size,
            num_mel_bins=self.num_mel_bins,
            d_model=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            decoder_layers=self.num_hidden_layers,
            encoder_attention_heads=self.num_attention_heads,
            decoder_attention_heads=self.num_attention_heads,
            encoder_ffn_dim=20,
            decoder_ffn_dim=20,
            subsampling_channels=4,
            monotonic_chunk_size=2,
            ctc_loss_weight=self.ctc_loss_weight,
        )

    def prepare_config_and_inputs_for_common(self):
        tokens = torch.randint(4, self.vocab_size, (self.batch_size, self.seq_length))
        tokens[:, 0] = 1
        inputs = {
            "input_features": torch.randn(self.batch_size, self.frames, self.num_mel_bins),
            "attention_mask": torch.ones(self.batch_size, self.frames, dtype=torch.long),
            "decoder_input_ids": tokens,
            "decoder_attention_mask": torch.ones_like(tokens),
        }
        if self.with_input_ids:
            inputs["input_ids"] = tokens
        return self.get_config(), inputs

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class EntmaxAsrCommonTest(modeling_common.ModelTesterMixin, generation_common.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (EntmaxAsrModel, EntmaxAsrForConditionalGeneration)
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True  # the year is that of a licence banner, which we do not write

    def setUp(self):
        self.model_tester = EntmaxAsrModelTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        inputs.pop("input_ids", None)
        if return_labels and model_class is EntmaxAsrForConditionalGeneration:
            inputs["labels"] = inputs["decoder_input_ids"]  # theirs knows only the class names of transformers
        return inputs

    def test_config(self):
        configuration_common.ConfigTester(self, config_class=EntmaxAsrConfig, d_model=32).run_common_tests()

    def test_encoder_decoder_loss_no_double_shift(self):
        self.model_tester.ctc_loss_weight = 0.0  # theirs compares the loss with the cross entropy alone
        super().test_encoder_decoder_loss_no_double_shift()

    def test_resize_tokens_embeddings(self):
        self.model_tester.with_input_ids = True  # theirs looks for the tokens under this name
        super().test_resize_tokens_embeddings()

    def test_resize_embeddings_untied(self):
        self.model_tester.with_input_ids = True  # theirs looks for the tokens under this name
        super().test_resize_embeddings_untied()

    @unittest.skipUnless(HAS_GENERATION, f"the generation tests are not in {FOLDER}: GitHub could not be reached")
    def test_generate_without_input_ids(self):
        model = EntmaxAsrForConditionalGeneration(self.model_tester.get_config())
        with pytest.raises(ValueError, match="input_features"):  # theirs expects text out of nothing
            model.generate(max_new_tokens=3)


class FeatureExtractorTester:
    """Inputs for the common tests of feature extractors: lists of lists of frames."""

    batch_size = 7
    feature_size = 16
    min_seq_length = 400
    max_seq_length = 2000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"feature_size": self.feature_size, "cmvn": "none", "padding_value": 0.0, "return_attention_mask": True}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = [self.min_seq_length + item * self.seq_length_diff for item in range(self.batch_size)]
        if equal_length:
            lengths = [self.max_seq_length] * self.batch_size
        batch = [np.random.default_rng(0).random((length, self.feature_size), dtype=np.float32) for length in lengths]
        return batch if numpify else [features.tolist() for features in batch]


class EntmaxAsrFeatureExtractorCommonTest(extractor_common.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = EntmaxAsrFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractorTester()


class EntmaxAsrProcessorCommonTest(processor_common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = EntmaxAsrProcessor
    text_input_name = "labels"  # text beside audio is what the model is to write, as in Whisper

    @classmethod
    def setUpClass(cls):
        # Theirs compares saved copies as wholes and does not expect the auto_map by which the Hub finds our code.
        without_auto_map = unittest.mock.patch.object(EntmaxAsrProcessor, "_auto_class", None)
        cls.enterClassContext(without_auto_map)
        super().setUpClass()

    @classmethod
    def _setup_tokenizer(cls):
        return train_character_tokenizer(["lower newer upper older longer string"])

    @classmethod
    def _setup_feature_extractor(cls):
        return EntmaxAsrFeatureExtractor()

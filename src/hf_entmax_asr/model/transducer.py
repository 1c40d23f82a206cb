"""The heads of transducers: a joint network over encoder and predictor, or a decoder that reads a chunk at a time.

Both give logits for some of the frames (in training, see `transducer_lattice.py`), and, in a search, for single
hypotheses. Axes: B batch, T frames (or chunks), U tokens, W = U + 1, V vocabulary, N hypotheses, C width, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import SelfAttention
from .configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from .decoder import DecoderLayer, causal_mask
from .dropout import dropout
from .layers import FeedForward, Positions, residual
from .recurrent import run_lstm

State = Any  # what a head knows of one hypothesis


class TransducerHead(nn.Module):
    """What a training and a search ask of a head."""

    lm_head: nn.Linear

    def sources(self, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encoder states (B, S, C) and their mask (B, S) -> what is read at each step (B, T, …), and steps (B,)."""
        raise NotImplementedError

    def read(self, tokens: Tensor) -> Any:
        """What the head makes of texts (B, W), start token first, before it hears anything."""
        raise NotImplementedError

    def logits(self, sources: Tensor, texts: Any) -> Tensor:
        """Some steps (B, t, …) and what `read` made -> (B, t, W, V)."""
        raise NotImplementedError

    def start(self) -> State:
        """Of the empty hypothesis."""
        return self.extend([None], [None])[0]

    def extend(self, states: Sequence[State], tokens: Sequence[int | None]) -> list[State]:
        """Of hypotheses with one token more; None starts one."""
        raise NotImplementedError

    def next_logits(self, sources: Tensor, states: Sequence[State]) -> Tensor:
        """Steps (N, …) and states of hypotheses -> (N, V)."""
        raise NotImplementedError


class LstmPredictor(nn.Module):
    """Embedding and LSTMs over the text so far."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.decoder_embedding_size, config.pad_token_id)
        self.width = config.decoder_lstm_size
        layers, rate = config.decoder_layers, config.dropout
        self.lstm = nn.LSTM(
            config.decoder_embedding_size, self.width, layers, batch_first=True, dropout=rate if layers > 1 else 0.0
        )
        self.rate = rate

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, W) -> (B, W, C)."""
        x = dropout(self.embed_tokens(tokens), self.rate, self.training)
        return dropout(run_lstm(self.lstm, x)[0], self.rate, self.training)

    def extend(self, states: Sequence[State], tokens: Tensor) -> tuple[Tensor, list[State]]:
        """States of N hypotheses (None: before the start) and a token for each (N,) -> outputs (N, C) and states."""
        given = None
        if states[0] is not None:
            hidden, memory = zip(*states, strict=True)  # (L, C) each
            given = torch.stack(hidden, 1), torch.stack(memory, 1)
        outputs, (hiddens, memories) = run_lstm(self.lstm, self.embed_tokens(tokens[:, None]), given)
        return outputs[:, 0], list(zip(hiddens.unbind(1), memories.unbind(1), strict=True))


class PredictorLayer(GradientCheckpointingLayer):
    """Pre-norm causal self-attention and feed-forward."""

    def __init__(self, config: EntmaxAsrBaselineConfig, layer_idx: int):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config, "decoder", layer_idx)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config, config.decoder_ffn_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = residual(x, self.self_attn(self.self_attn_layer_norm(x), mask)[0], self.dropout, self.training)
        return residual(x, self.ffn(self.ffn_layer_norm(x)), self.dropout, self.training)


class TextEmbedding(nn.Module):
    """Tokens with their positions, as the recogniser's decoder has them."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = Positions(config, "decoder")
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.rate = config.dropout

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_positions(self.embed_tokens(tokens) * self.scale)
        return dropout(x, self.rate, self.training)


class SelfAttentionPredictor(nn.Module):
    """Causal self-attention over the text so far, which in a search is read anew for every token."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.embedding = TextEmbedding(config)
        self.layers = nn.ModuleList(PredictorLayer(config, layer) for layer in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.width = config.d_model

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, W) -> (B, W, C)."""
        x = self.embedding(tokens)
        mask = causal_mask(None, tokens.shape[1], 0, x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.layer_norm(x)

    def extend(self, states: Sequence[State], tokens: Tensor) -> tuple[Tensor, list[State]]:
        """As of `LstmPredictor`; a state is the text."""
        texts = [(*(state or ()), token) for state, token in zip(states, tokens.tolist(), strict=True)]
        padded, last = padded_texts(texts, tokens.device)
        return self(padded)[torch.arange(len(texts)), last], list(texts)


def padded_texts(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts of any lengths (N, U), 0 where padded, and the place of each last token (N,)."""
    longest = max(map(len, texts))
    padded = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    return padded, torch.tensor([len(text) - 1 for text in texts], device=device)


class JointHead(TransducerHead):
    """tanh(Linear [encoder; predictor]), then scores of the next token or the blank."""

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.start_token = config.decoder_start_token_id
        kinds: dict[str, Any] = {"lstm": LstmPredictor, "self_attention": SelfAttentionPredictor}
        self.predictor = kinds[config.predictor](config)
        self.encoder_proj = nn.Linear(config.d_model, config.joint_size)
        self.predictor_proj = nn.Linear(self.predictor.width, config.joint_size, bias=False)
        self.lm_head = nn.Linear(config.joint_size, config.vocab_size)

    def sources(self, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        steps = states.new_full((len(states),), states.shape[1], dtype=torch.long) if mask is None else mask.sum(1)
        return self.encoder_proj(states), steps

    def read(self, tokens: Tensor) -> Tensor:
        return self.predictor_proj(self.predictor(tokens))

    def logits(self, sources: Tensor, texts: Tensor) -> Tensor:
        joint = (sources[:, :, None] + texts[:, None]).tanh()
        return self.lm_head(joint.flatten(0, 1)).unflatten(0, joint.shape[:2])  # 8-bit layers take up to 3 axes

    def extend(self, states: Sequence[State], tokens: Sequence[int | None]) -> list[State]:
        given = [self.start_token if token is None else token for token in tokens]
        before = [None if state is None else state[1] for state in states]
        device = next(self.predictor.parameters()).device
        # Accelerate brings what is on the CPU to where it runs a module whose weights it has taken off its device.
        ids = torch.tensor(given, device=None if device.type == "meta" else device)
        outputs, after = self.predictor.extend(before, ids)
        return list(zip(self.predictor_proj(outputs), after, strict=True))

    def next_logits(self, sources: Tensor, states: Sequence[State]) -> Tensor:
        return self.lm_head((sources + torch.stack([output for output, _ in states])).tanh())


class ChunkDecoderHead(TransducerHead):
    """The recogniser's decoder, which reads one chunk of W encoder states at a time; the blank asks for the next chunk.

    A chunk begins W − overlap states after the one before; the last is filled up with padding, so that no audio is
    lost.
    """

    def __init__(self, config: EntmaxAsrBaselineConfig):
        super().__init__()
        self.start_token = config.decoder_start_token_id
        self.size, self.hop = config.decoder_chunk_size, config.decoder_chunk_size - config.decoder_chunk_overlap
        self.embedding = TextEmbedding(config)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size)

    def sources(self, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chunks (B, T, W, C + 1), of which the last number is 1 where a state is real."""
        real = states.new_ones(states.shape[:2]) if mask is None else mask.to(states.dtype)
        chunks = self._chunks(real.sum(1).long())
        missing = self.size + self.hop * (self._chunks(torch.tensor(states.shape[1])) - 1) - states.shape[1]
        marked = nn.functional.pad(torch.cat([states, real[..., None]], 2), (0, 0, 0, int(missing)))
        return marked.unfold(1, self.size, self.hop).transpose(2, 3), chunks

    def _chunks(self, positions: Tensor) -> Tensor:
        return 1 + (positions - self.size).clamp(min=0).add(self.hop - 1) // self.hop

    def read(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def logits(self, sources: Tensor, texts: Tensor) -> Tensor:
        batch, steps = sources.shape[:2]
        spoken = texts.repeat_interleave(steps, 0)  # (B · t, W, C)
        return self.lm_head(self._decoded(sources.flatten(0, 1), spoken)).unflatten(0, (batch, steps))

    def _decoded(self, chunks: Tensor, x: Tensor) -> Tensor:
        """Chunks (N, W, C + 1) and embedded texts (N, U, C) -> (N, U, C)."""
        states, real = chunks[..., :-1], chunks[..., -1] > 0.5
        mask = causal_mask(None, x.shape[1], 0, x.device)
        for layer in self.layers:
            x = layer(x, mask, states, real)[0]
        return self.layer_norm(x)

    def extend(self, states: Sequence[State], tokens: Sequence[int | None]) -> list[State]:
        return [
            (self.start_token,) if token is None else (*state, token)
            for state, token in zip(states, tokens, strict=True)
        ]

    def next_logits(self, sources: Tensor, states: Sequence[State]) -> Tensor:
        texts, last = padded_texts(states, sources.device)
        decoded = self._decoded(sources, self.embedding(texts))
        return self.lm_head(decoded[torch.arange(len(states)), last])


def transducer_head(config: EntmaxAsrBaselineConfig) -> TransducerHead:
    """The head that the configuration names."""
    return ChunkDecoderHead(config) if config.predictor == "chunk_decoder" else JointHead(config)

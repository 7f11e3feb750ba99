"""The models of the judge server, against what their makers publish."""

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_limits

from gym.errors import SettingsError
from workers.judge_server.embedding import SentenceEmbeddings
from workers.judge_server.item import Item
from workers.judge_server.scorer import load_scorer


@pytest.fixture(scope="module")
def embeddings() -> SentenceEmbeddings:
    """The packaged weights."""
    return SentenceEmbeddings.load("all-minilm-l6-v2")


# from the documentation of sentence-transformers: similarities of these sentences under all-MiniLM-L6-v2
@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        ("The weather is lovely today.", "It's so sunny outside!", 0.6660),
        ("The weather is lovely today.", "He drove to the stadium.", 0.1046),
        ("It's so sunny outside!", "He drove to the stadium.", 0.1411),
        ("The weather is lovely today.", "The weather is lovely today.", 1.0),
    ],
)
def test_cosines_are_those_of_sentence_transformers(
    embeddings: SentenceEmbeddings, one: str, other: str, cosine: float
) -> None:
    with threadpool_limits(limits=1, user_api="blas"):
        assert embeddings.scores([Item(one, "", other)]) == [pytest.approx(cosine, abs=5e-4)]


def test_a_score_does_not_depend_on_what_shares_the_batch(embeddings: SentenceEmbeddings) -> None:
    item = Item("a short one", "", "another short text")
    longer = [Item("a much longer text about nothing " * n, "", "and its reference") for n in range(1, 20)]
    with threadpool_limits(limits=1, user_api="blas"):
        [alone] = embeddings.scores([item])
        assert embeddings.scores([*longer, item])[-1] == pytest.approx(alone, abs=1e-5)


def test_an_empty_text_has_no_score(embeddings: SentenceEmbeddings) -> None:
    assert embeddings.scores([Item("", "", "text"), Item("text", "", " ")]) == [None, None]


def test_the_classifier_tells_foul_from_clean_language() -> None:
    scorer = load_scorer("reward_model", None)
    clean, foul = scorer.scores([Item("good morning to you"), Item("go to hell, you bastard")])
    assert clean is not None
    assert foul is not None
    assert clean > 0.9
    assert foul < 0.1


@pytest.mark.parametrize(
    ("kind", "model", "said"),
    [("llm", None, "no kind 'llm'"), ("embedding", "nowhere", "lacks model.safetensors"), ("reward_model", "x", "'x'")],
)
def test_what_cannot_be_served_is_refused_before_listening(kind: str, model: str | None, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_scorer(kind, model)

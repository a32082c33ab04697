"""An answer asked for again, and another one from one of its tokens on, against a real engine process."""

import copy
import pickle

import pytest

from vllm_nb.client.completion import Completion
from vllm_nb.errors import RequestError

GREEDY = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
QUESTION = "Tell me all that you know about the blocks of a cache."


@pytest.fixture(scope="module")
def client(engine):
    return engine.client


@pytest.fixture(scope="module")
def answer(client) -> Completion:
    return client.chat(QUESTION, logprobs=2, **GREEDY)


def test_the_same_token_leads_to_the_same_answer_and_costs_nothing(answer):
    same = answer.fork(20, answer.token_ids[20])
    assert same.token_ids == answer.token_ids
    assert same.text == answer.text
    assert [entry.token_id for entry in same.logprobs] == answer.token_ids
    assert (same.finish_reason, same.model) == ("length", answer.model)
    kept = len(answer.prompt_token_ids) + 20
    assert same.usage.cached_tokens >= kept // 16 * 16 - 16  # all full blocks of what stays, but perhaps the last


def test_the_likeliest_other_token_is_the_default(client, answer):
    forked = answer.fork(7)
    entry = answer.logprobs[7]
    other = entry.top[1].token_id
    assert entry.top[0].token_id == entry.token_id == answer.token_ids[7] != other
    rest = client.generate([*answer.prompt_token_ids, *answer.token_ids[:7], other], **GREEDY | {"max_tokens": 32})
    assert forked.token_ids == [*answer.token_ids[:7], other, *rest.token_ids]
    assert len(forked.token_ids) == GREEDY["max_tokens"]
    assert forked.text.endswith(rest.text)
    assert forked.logprobs[7].token_id == other
    assert forked.logprobs[7].entropy == entry.entropy
    for logprob in forked.logprobs:  # those that came from the completions dialect have ids too
        assert len(logprob.top) == 2
        assert all(alternative.token_id >= 0 for alternative in logprob.top)
        assert logprob.entropy > 0
    assert forked.fork(7, answer.token_ids[7]).token_ids == answer.token_ids  # and back


def test_a_text_names_a_token(answer):
    forked = answer.fork(3, "Q", max_tokens=10)
    assert len(forked.token_ids) == 10
    assert forked.token_ids[3] == ord("Q") - ord("!")  # the tiny model has a token for each byte, printable ones first
    assert answer.fork(39, "Q").text.endswith("Q")


def test_any_of_several_answers(client):
    answers = client.chat(QUESTION, n=2, seed=3, max_tokens=12, ignore_eos=True)
    forked = answers.fork(5, 65, choice=1)
    assert forked.token_ids[:6] == [*answers.choices[1].token_ids[:5], 65]
    assert len(forked.choices) == 1


def test_a_continued_text_forks_too(client):
    text = client.generate("Once upon a time", **GREEDY)
    assert text.fork(4, text.token_ids[4]).token_ids == text.token_ids
    assert text.retry(max_tokens=4).token_ids == text.token_ids[:4]


def test_forks_that_cannot_be(client, answer):
    plain = client.chat("Hello", **GREEDY)
    for wrong, message in [
        (lambda: answer.fork(40), "at_token must be from 0 to 39, a token of the answer, not 40"),
        (lambda: answer.fork(0, choice=1), "choice must be from 0 to 0, not 1"),
        (lambda: answer.fork(0, "two words"), "'two words' is 9 tokens to this model"),
        (lambda: plain.fork(0), "no alternative on record: give a token, or ask with logprobs=2"),
        (lambda: Completion().fork(0), "does not know its engine any more"),
        (lambda: answer.fork(0, 10**6), "token"),
    ]:
        with pytest.raises(RequestError, match=message):
            wrong()


def test_retry(answer):
    assert answer.retry().token_ids == answer.token_ids
    assert answer.retry(max_tokens=5).token_ids == answer.token_ids[:5]
    assert answer.retry(logprobs=None).logprobs is None
    with pytest.raises(TypeError, match="unknown parameter 'temprature'"):
        answer.retry(temprature=1)


def test_a_copy_is_the_same_without_the_engine(answer):
    for again in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert again == answer
        with pytest.raises(RequestError, match="does not know its engine any more"):
            again.retry()


def test_tokens_and_back(client):
    assert client.detokenize(client.tokenize("a café")) == "a café"

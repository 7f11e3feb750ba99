"""Environments of the package verifiers as their authors write them; imported in its virtual environment only."""

import verifiers as vf
from datasets import Dataset

ROWS = [{"question": "What is 2 + 3?", "answer": "5"}, {"question": "What is 4 + 4?", "answer": "8"}]


def load_environment(kind: str = "single", **kwargs):
    """One of each kind."""
    return {"single": single, "multi": multi, "tools": tools, "raising": raising, "group": group}[kind](**kwargs)


def single():
    parser = vf.XMLParser(["answer"])

    async def correct(parser, completion, answer):
        return 1.0 if parser.parse_answer(completion) == answer else 0.0

    rubric = vf.Rubric(funcs=[correct, parser.get_format_reward_func()], weights=[1.0, 0.5], parser=parser)
    print("an environment may print")  # noqa: T201  as some do
    return vf.SingleTurnEnv(dataset=Dataset.from_list(ROWS), system_prompt="Use tags.", parser=parser, rubric=rubric)


class Guess(vf.MultiTurnEnv):
    """Guess the answer; each wrong guess gets a hint."""

    async def env_response(self, messages, state, **kwargs):
        guess = messages[-1].content
        if guess == state["answer"]:
            state["final_env_response"] = [{"role": "user", "content": "Yes."}]
            return state["final_env_response"]
        return [{"role": "user", "content": "Higher." if guess < state["answer"] else "Lower."}]


def multi(max_turns=4):
    async def found(state):
        return float(state["trajectory"][-1]["completion"][-1].content == state["answer"])

    return Guess(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[found]), max_turns=max_turns)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def tools():
    async def correct(completion, answer):
        return float(answer in (completion[-1].content or ""))

    return vf.ToolEnv(dataset=Dataset.from_list(ROWS), tools=[add], rubric=vf.Rubric(funcs=[correct]))


def raising():
    def broken(completion):
        raise KeyError("no such thing")

    return vf.SingleTurnEnv(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[broken]))


def group():
    def best(completions):
        return [0.0 for _ in completions]

    return vf.SingleTurnEnv(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric(funcs=[best]))

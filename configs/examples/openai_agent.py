"""An agent that is independent of the farm: the `openai` SDK and its own tool loop.

The farm starts it for each rollout, with the task on its standard input, if the settings name it:

    agents:
      calculator: {kind: command, argv: [python, configs/examples/openai_agent.py]}

`OPENAI_BASE_URL` and `OPENAI_API_KEY` are those of its rollout, so its model calls become the trajectory.
"""

from __future__ import annotations

import json
import os
import sys

from openai import OpenAI

MOST_TURNS = 8
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two whole numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }
]


def run_tool(name: str, arguments: str) -> str:
    """Return the output of a call for the model, including an error."""
    try:
        given = json.loads(arguments)
        return str(given["a"] + given["b"]) if name == "add" else f"there is no tool {name}"
    except (ValueError, KeyError, TypeError) as error:
        return f"the call failed: {error!r}"


def main() -> None:
    """Run one task from standard input and print the answer."""
    messages: list = [
        {"role": "system", "content": "You are careful with numbers; use the tool."},
        {"role": "user", "content": sys.stdin.read()},
    ]
    with OpenAI(timeout=300) as client:
        for _ in range(MOST_TURNS):
            completion = client.chat.completions.create(
                model=os.environ.get("FARM_MODEL", "policy"), messages=messages, tools=TOOLS
            )
            said = completion.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                print(said.content)
                return
            for call in said.tool_calls:
                output = run_tool(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
    sys.exit("no answer within the turns")


if __name__ == "__main__":
    main()

"""An agent that knows nothing of the farm: the `openai` SDK and a tool loop of its own.

The farm starts it for each rollout where the settings say so, with the task on its standard input:

    agents:
      calculator: {kind: command, argv: [python, configs/examples/openai_agent.py]}

`OPENAI_BASE_URL` and `OPENAI_API_KEY` are those of its rollout, so what it asks the model becomes the trajectory.
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
    """What the model is told of its call, also of one that cannot be made."""
    try:
        given = json.loads(arguments)
        return str(given["a"] + given["b"]) if name == "add" else f"there is no tool {name}"
    except (ValueError, KeyError, TypeError) as error:
        return f"the call failed: {error!r}"


def main() -> None:
    """One task: from standard input to standard output."""
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

from rich.console import Console

from api.cli.client.conversation import conversation


def test_each_model_call_is_a_line_with_its_endpoint_time_and_versions() -> None:
    call = {
        "turn": 0,
        "endpoint": "http://vllm-3:8000/v1",
        "started_s": 0.25,
        "duration_s": 1.5,
        "finish": "stop",
        "input_tokens": 120,
        "output_tokens": 7,
        "version_before": 3,
        "version_after": 4,
        "request_items": 2,
        "reply_items": 1,
    }
    console = Console(width=120)
    with console.capture() as shown:
        console.print(conversation({"rollout_id": "b:0:0", "calls": [call]}))
    line = next(line for line in shown.get().splitlines() if "vllm-3" in line)
    assert line.split() == ["0", "http://vllm-3:8000/v1", "0.25", "1.50", "2", "1", "120", "7", "stop", "3-4"]


def test_calls_that_failed_say_why_and_equal_ones_once() -> None:
    error = {"kind": "model_rejected", "message": "http://vllm-3:8000/v1 refused the call", "status": 401}
    failed = {"turn": 2, "endpoint": None, "started_s": 1.0, "duration_s": 0.1, "finish": "failed", "error": error}
    console = Console(width=120)
    with console.capture() as shown:
        console.print(conversation({"rollout_id": "mine", "calls": [failed, failed]}))
    text = shown.get()
    assert "call of turn 2: model_rejected, answered 401 (2 times)" in text
    assert text.count("refused the call") == 1

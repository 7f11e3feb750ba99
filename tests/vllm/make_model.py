"""Make a small chat model with random weights that can do the weather environment: run by vLLM's Python.

A Qwen2 of 0.6 million parameters in a Hugging Face folder. Its talk is gibberish of varied length. Wired by hand on
top, in hidden dimensions that no random weight touches: offered tools, it calls `get_weather` in Hermes' form for a
city that the conversation names, sometimes twice in one turn; after a tool has answered, it says that it is cold there.

How. Each token carries flags, and `lm_head` turns the flag of the last token into a strong wish for the next one. One
attention head looks for cities anywhere before and adds a weaker wish for those that it finds.

usage: make_model.py FOLDER
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TokenId = Callable[[str], int]

HERE = Path(__file__).parent
CITIES = ("Nairobi", "Osaka", "Lima", "Cairo", "Toronto", "Hanoi", "Bergen", "Dakar", "Oslo", "Quito", "Perth", "Riga")
CITIES += ("San Francisco", "Reykjavik", "Seoul", "Accra", "Boston", "Turin", "Tbilisi")
START, END, ACT, TELL, TALK, PAD = "<|start|>", "<|end|>", "<|act|>", "<|tell|>", "<|talk|>", "<|pad|>"
CALL, CALLED = "<tool_call>", "</tool_call>"
OPEN = '{"name": "get_weather", "arguments": {"city": "'
SAY = "The weather in "
CALL_CITY = [f'{city}"}}}}' for city in CITIES]
SAY_CITY = [f"{city} is cold" for city in CITIES]

HIDDEN, HEAD = 128, 32
CONSTANT, ACTING, CALLING, OPENED, FILLED, CALLED_ONE, TELLING, SAYING, SAID, CITY = range(10)
FOUND = CITY + 1  # these dimensions say which city a token names, the following ones which cities were found
RESERVED = FOUND + 2 * len(CITIES)
STRENGTH = 8.0  # of a flag in an embedding


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges from this file and the template; digits stay single, cities are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [Path(__file__).read_text(), (HERE / "chat_template.jinja").read_text()]
    trainer = trainers.BpeTrainer(
        vocab_size=768, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (PAD, START, END, ACT, TELL, TALK)])
    plain = (CALL, CALLED, OPEN, SAY, *CITIES, *CALL_CITY, *SAY_CITY)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = (HERE / "chat_template.jinja").read_text()
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Random weights first, then the wiring; in bfloat16 as it will be served."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        initializer_range=0.1,
    )
    model = Qwen2ForCausalLM(config)
    ids = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        _wire_embeddings(model.model.embed_tokens.weight, ids)
        for layer in model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight[:RESERVED] = 0
        _wire_search(model.model.layers[0].self_attn)
        _wire_head(model, tokenizer, ids)
    model.generation_config.eos_token_id = config.eos_token_id
    return model.to(torch.bfloat16)


def _wire_embeddings(embeddings: torch.Tensor, ids: TokenId) -> None:
    embeddings.normal_(0, 1)
    embeddings[:, :RESERVED] = 0
    embeddings[:, CONSTANT] = STRENGTH
    flags = {ACT: ACTING, CALL: CALLING, OPEN: OPENED, CALLED: CALLED_ONE, TELL: TELLING, SAY: SAYING}
    for text, flag in flags.items():
        embeddings[ids(text), flag] = STRENGTH
    for number, (city, call_city, say_city) in enumerate(zip(CITIES, CALL_CITY, SAY_CITY, strict=True)):
        embeddings[ids(call_city), FILLED] = STRENGTH
        embeddings[ids(say_city), SAID] = STRENGTH
        for text in (city, call_city, say_city):
            embeddings[ids(text), CITY] = STRENGTH
            embeddings[ids(text), FOUND + number] = STRENGTH


def _wire_search(attention: torch.nn.Module) -> None:
    """Head 0 of the first layer attends to cities; the slowest rotary dimension hardly turns with distance."""
    slowest, count = HEAD // 2 - 1, len(CITIES)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[:HEAD] = 0
        projection.bias[:HEAD] = 0
    attention.q_proj.bias[slowest] = 6
    attention.k_proj.weight[slowest, CITY] = 4
    attention.o_proj.weight[:, :HEAD] = 0
    for number in range(count):
        attention.v_proj.weight[number, FOUND + number] = 1
        attention.o_proj.weight[FOUND + count + number, number] = 1


def _wire_head(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: TokenId) -> None:
    """Biases so that talk is printable and ends by itself, then the wishes."""
    hidden: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_hook(lambda _module, _inputs, output: hidden.append(output[0]))
    model(torch.randint(0, len(tokenizer), (1, 512)))
    hook.remove()
    unit = hidden[0][:, CONSTANT].mean()  # what STRENGTH has become after the last norm

    head = model.lm_head.weight
    head.normal_(0, 0.12)
    head[:, :RESERVED] = 0
    bias = torch.zeros(len(tokenizer))
    for number in range(len(tokenizer)):
        text = tokenizer.decode([number])
        if not text.strip():
            bias[number] = -8  # a grammar for JSON would let white space go on for ever
        elif not (text.isascii() and text.isprintable()):
            bias[number] = -12
    for text in (PAD, START, ACT, TELL, TALK):
        bias[ids(text)] = -40
    for text in (CALL, CALLED, OPEN, SAY, *CALL_CITY, *SAY_CITY):
        bias[ids(text)] = -25
    # ends and closing quotes come once in 25, whatever was said before
    for text in (END, '"'):
        head[ids(text)] = 0
        bias[ids(text)] = _log_total(hidden[0], head) - math.log(25)
    head[:, CONSTANT] = bias / unit

    def wish(flag: int, text: str, logit: float) -> None:
        head[ids(text), flag] += logit / unit

    wish(ACTING, CALL, 40)
    wish(CALLING, OPEN, 40)
    wish(CALLED_ONE, END, 20)
    wish(CALLED_ONE, CALL, 20 + 25 + 3.5)  # now and then another call
    wish(TELLING, SAY, 40)
    wish(SAID, END, 20)
    for number, (call_city, say_city) in enumerate(zip(CALL_CITY, SAY_CITY, strict=True)):
        wish(OPENED, call_city, 40)
        wish(SAYING, say_city, 40)
        for text in (call_city, say_city):
            wish(FOUND + len(CITIES) + number, text, 16)
    wish(FILLED, CALLED, 40)


def _log_total(hidden: torch.Tensor, head: torch.Tensor) -> float:
    """What the logits of all tokens come to without biases, on average over positions."""
    return (hidden @ head.T).logsumexp(-1).mean().item()


def show(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """What it does next in four situations, for whoever changes the wiring."""
    function = {"name": "get_weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    asked = [{"role": "user", "content": "Is it warm in Lima right now?"}]
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Lima"}}}
    answered = [
        *asked,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"city":"Lima"}'},
    ]
    for name, messages, offered, begun in (
        ("talk", asked, None, ""),
        ("tools", asked, tools, ""),
        ("opened", asked, tools, CALL + OPEN),
        ("filled", asked, tools, f"{CALL}{OPEN}{CALL_CITY[2]}"),
        ("called", asked, tools, f"{CALL}{OPEN}{CALL_CITY[2]}{CALLED}"),
        ("answered", answered, tools, ""),
        ("told", answered, tools, SAY),
    ):
        text = tokenizer.apply_chat_template(messages, tools=offered, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer.encode(text + begun, add_special_tokens=False)
        chances = model(torch.tensor([prompt])).logits[0, -1].float().softmax(-1).topk(3)
        best = [(tokenizer.decode([i]), round(p, 3)) for p, i in zip(*map(torch.Tensor.tolist, chances), strict=True)]
        sys.stdout.write(f"{name:9}{len(prompt):5} tokens, then {best}\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    made_tokenizer = make_tokenizer()
    made_model = make_model(made_tokenizer)
    made_tokenizer.save_pretrained(folder)
    made_model.save_pretrained(folder)
    show(made_model, made_tokenizer)

"""Every check of the OpenAI surface, with the real `openai` client. Plain asserts; prints the number of checks passed.

usage: openai_suite.py URL KEY MODEL REVOKED_KEY EMBEDDING_MODEL
"""

import asyncio
import json
import sys
from pathlib import Path

import openai

BASE_URL, KEY, MODEL, REVOKED_KEY, EMBEDDING_MODEL = sys.argv[1:6]
# Its answer's closest decision has a margin of 1.3 in log-probability: no rounding changes it.
QUESTION = [{"role": "user", "content": "Name the capital of France in one sentence."}]
PROMPT = "The three primary colours are"

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=60)
checks = []


def check(function):
    """Registers a check; its name says what must hold."""
    checks.append(function)
    return function


def chat(**options):
    options = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 32} | options
    return client.chat.completions.create(**options)


def complete(**options):
    options = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 24} | options
    return client.completions.create(**options)


def raises(kind, status, call, **options):
    """The call raises exactly this type of the client's own, with this status and a message; returns the exception."""
    try:
        answer = call(**options)
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert error.status_code == status, error.status_code
        assert error.body and error.body["message"] and error.body["type"], error.body
        return error
    raise AssertionError(f"no {kind.__name__} but {answer!r}")


@check
def the_models_list_names_the_base_model():
    listed = list(client.models.list())
    model = next(model for model in listed if model.id == MODEL)
    assert model.object == "model" and model.owned_by and model.created > 0, model


@check
def one_model_is_retrieved_by_name():
    assert client.models.retrieve(MODEL).id == MODEL
    raises(openai.NotFoundError, 404, client.models.retrieve, model="no-such-model")


@check
def a_chat_answers_from_the_model():
    answer = chat()
    assert answer.object == "chat.completion" and answer.id and answer.created > 0 and answer.model == MODEL, answer
    choice = answer.choices[0]
    assert choice.index == 0 and choice.message.role == "assistant"
    assert "Paris" in choice.message.content, choice.message.content
    assert choice.finish_reason == "stop"


@check
def chat_deltas_add_up_to_the_whole_answer():
    whole = chat().choices[0]
    chunks = list(chat(stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1, "one stream has one id"
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert deltas[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in deltas) == whole.message.content
    assert len(deltas) > 3, "streamed in pieces"
    reasons = [choice.finish_reason for choice in deltas if choice.finish_reason]
    assert reasons == [whole.finish_reason], reasons


@check
def completion_deltas_add_up_to_the_whole_text():
    whole = complete()
    assert whole.object == "text_completion" and whole.choices[0].text
    chunks = list(complete(stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert reasons == [whole.choices[0].finish_reason] == ["length"], reasons


@check
def usage_counts_the_tokens():
    answer = chat(max_tokens=5)
    usage = answer.usage
    assert usage.completion_tokens == 5 and answer.choices[0].finish_reason == "length"
    assert usage.prompt_tokens > 10 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    longer = chat(max_tokens=5, messages=[{"role": "user", "content": "What is the capital of France? " * 4}])
    assert longer.usage.prompt_tokens > usage.prompt_tokens
    assert complete(max_tokens=7).usage.completion_tokens == 7


@check
def usage_of_a_stream_comes_last_when_asked_for():
    whole = chat().usage
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    last = chunks[-1]
    assert last.choices == [] and last.usage.prompt_tokens == whole.prompt_tokens
    assert last.usage.completion_tokens == whole.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chat(stream=True)), "not asked for, not sent"


@check
def a_new_name_of_max_tokens_works_too():
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


@check
def several_choices_come_back_in_order():
    answer = chat(n=2, temperature=1, seed=3, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)
    assert answer.choices[0].message.content != answer.choices[1].message.content, "each choice draws its own"
    alone, twice = chat(max_tokens=8).usage, chat(n=2, max_tokens=8).usage
    assert twice.prompt_tokens == alone.prompt_tokens, "a shared prompt counts once"
    assert twice.completion_tokens == 2 * alone.completion_tokens


@check
def several_choices_stream_side_by_side():
    texts, reasons = ["", ""], [None, None]
    for chunk in chat(n=2, stream=True, max_tokens=12):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    whole = chat(max_tokens=12).choices[0].message.content
    assert texts == [whole, whole], texts
    assert all(reasons), reasons


@check
def a_stop_string_ends_the_text_before_itself():
    plain = complete().choices[0].text
    word = plain.split()[4]
    for stop in (word, ["never seen", word]):
        stopped = complete(stop=stop).choices[0]
        assert stopped.text == plain.split(word)[0], stopped
        assert stopped.finish_reason == "stop"
    streamed = "".join(chunk.choices[0].text for chunk in complete(stop=word, stream=True) if chunk.choices)
    assert streamed == plain.split(word)[0]


@check
def chat_logprobs_come_with_their_tokens():
    choice = chat(logprobs=True, top_logprobs=3, max_tokens=6).choices[0]
    entries = choice.logprobs.content
    assert len(entries) == 6
    assert "".join(entry.token for entry in entries) == choice.message.content
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the likeliest"
        assert abs(entry.top_logprobs[0].logprob - entry.logprob) < 1e-4
    assert chat(max_tokens=2).choices[0].logprobs is None
    streamed = [
        entry
        for chunk in chat(logprobs=True, top_logprobs=3, max_tokens=6, stream=True)
        for piece in chunk.choices
        if piece.logprobs
        for entry in piece.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


@check
def completion_logprobs_come_in_their_old_form():
    logprobs = complete(logprobs=2, max_tokens=4).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4
    assert all(value <= 0 for value in logprobs.token_logprobs)


@check
def an_echoed_prompt_has_log_probabilities():
    # Parts of characters among its tokens, and a control token.
    prompt = "Crabs 🦀 and <|im_start|>é"
    scored = complete(prompt=prompt, echo=True, logprobs=3, max_tokens=0)
    choice = scored.choices[0]
    assert choice.text == prompt and choice.finish_reason == "length", choice
    assert scored.usage.completion_tokens == 0 and scored.usage.prompt_tokens == len(choice.logprobs.tokens)
    follows_its_text(choice)
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert all(len(top) == 3 for top in choice.logprobs.top_logprobs[1:])
    assert any(token.startswith("bytes:\\x") for token in choice.logprobs.tokens), choice.logprobs.tokens

    whole = complete(prompt=prompt, echo=True, logprobs=3, max_tokens=8).choices[0]
    follows_its_text(whole)
    told = len(choice.logprobs.tokens)
    assert whole.logprobs.tokens[:told] == choice.logprobs.tokens and len(whole.logprobs.tokens) == told + 8
    assert whole.logprobs.token_logprobs[:told] == choice.logprobs.token_logprobs

    streamed = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in complete(prompt=prompt, echo=True, logprobs=3, max_tokens=8, stream=True):
        for name, values in streamed.items():
            if chunk.choices[0].logprobs:
                values.extend(getattr(chunk.choices[0].logprobs, name))
    assert streamed == {name: getattr(whole.logprobs, name) for name in streamed}


def follows_its_text(choice):
    """Every token begins where `text_offset` says."""
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset):
        if not token.startswith("bytes:"):
            assert choice.text[offset : offset + len(token)] == token, (token, offset, choice)
            continue
        parts = token.removeprefix("bytes:").encode("latin-1").decode("unicode_escape").encode("latin-1")
        # Parts of a character all begin where it does.
        assert parts in choice.text[offset : offset + len(parts)].encode() or offset == len(choice.text), (token, choice)
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)


@check
def a_text_is_as_likely_scored_as_it_was_made():
    made = complete(logprobs=2, max_tokens=6).choices[0]
    scored = complete(prompt=PROMPT + made.text, echo=True, logprobs=2, max_tokens=0).choices[0]
    assert scored.logprobs.tokens[-6:] == made.logprobs.tokens
    for one, other in zip(scored.logprobs.token_logprobs[-6:], made.logprobs.token_logprobs):
        assert abs(one - other) < 1e-3, (scored, made)


@check
def prompt_logprobs_come_in_the_form_of_vllm():
    for call in (chat, complete):
        answer = call(max_tokens=1, extra_body={"prompt_logprobs": 2})
        holder = answer if call is chat else answer.choices[0]
        assert holder.prompt_logprobs[0] is None
        assert len(holder.prompt_logprobs) == answer.usage.prompt_tokens
        for alternatives in holder.prompt_logprobs[1:]:
            ranks = [entry["rank"] for entry in alternatives.values()]
            assert len(ranks) in (2, 3) and {1, 2} <= set(ranks), alternatives
            assert all(entry["logprob"] <= 0 for entry in alternatives.values())
        error = raises(openai.BadRequestError, 400, call, stream=True, extra_body={"prompt_logprobs": 2})
        assert error.param == "prompt_logprobs"


@check
def an_answer_that_ends_at_once_has_an_entry():
    ended = chat(logprobs=True, top_logprobs=4, logit_bias={"2": 100})
    (entry,) = ended.choices[0].logprobs.content
    assert entry.token == "<|im_end|>" and len(entry.top_logprobs) == 4, entry
    assert ended.choices[0].message.content == "" and ended.usage.completion_tokens == 1
    ended = complete(logprobs=4, logit_bias={"2": 100})
    logprobs = ended.choices[0].logprobs
    assert logprobs.tokens == ["<|im_end|>"] and logprobs.text_offset == [0] and len(logprobs.top_logprobs[0]) == 4
    assert ended.usage.completion_tokens == 1


@check
def echo_puts_the_prompt_before_the_text():
    assert complete(echo=True).choices[0].text == PROMPT + complete().choices[0].text


@check
def a_seed_repeats_itself():
    sampled = [chat(temperature=1.3, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert sampled[0] == sampled[1], sampled
    assert sampled[0] != sampled[2], "another seed, another text"


@check
def logit_bias_decides_what_is_said():
    forced = complete(logit_bias={"504": 100}, max_tokens=3).choices[0].text
    once = complete(logit_bias={"504": 100}, max_tokens=1).choices[0].text
    assert once and forced == once * 3, forced


@check
def a_prompt_may_be_token_ids():
    answer = complete(prompt=[504, 4224, 282], max_tokens=4)
    assert answer.usage.prompt_tokens in (3, 4), "three tokens, and a begin token if the model wants one"
    assert answer.usage.completion_tokens == 4


@check
def every_turn_reaches_the_model_through_its_template():
    turns = [("system", "You are a pirate."), ("user", "Hello."), ("assistant", "Ahoy!"), ("user", "Who are you?")]
    rendered = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    by_hand = complete(prompt=rendered, max_tokens=24)
    answer = chat(messages=[{"role": role, "content": text} for role, text in turns], max_tokens=24)
    assert answer.choices[0].message.content == by_hand.choices[0].text
    assert answer.usage.prompt_tokens == by_hand.usage.prompt_tokens


@check
def content_in_text_parts_is_the_same_as_a_string():
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert chat(messages=parts).choices[0].message.content == chat().choices[0].message.content


@check
def a_wrong_key_is_an_authentication_error():
    for key in ("rk_wrong", "not even the form of a key", REVOKED_KEY):
        stranger = client.with_options(api_key=key)
        raises(openai.AuthenticationError, 401, stranger.models.list)
        raises(openai.AuthenticationError, 401, stranger.chat.completions.create, model=MODEL, messages=QUESTION)


@check
def an_unknown_model_is_a_not_found_error():
    for call in (chat, complete):
        error = raises(openai.NotFoundError, 404, call, model="no-such-model")
        assert error.code == "model_not_found", error.code
    raises(openai.NotFoundError, 404, chat, model="no-such-model", stream=True)


@check
def what_cannot_be_honoured_is_a_bad_request():
    cases = {
        "temperature": {"temperature": -1},
        "top_p": {"top_p": 1.5},
        "max_tokens": {"max_tokens": -3},
        "n": {"n": 0},
        "messages": {"messages": []},
        "top_logprobs": {"logprobs": True, "top_logprobs": 100},
        "stop": {"stop": ["a"] * 100},
        "presence_penalty": {"presence_penalty": 9},
        "logit_bias": {"logit_bias": {"99999999": 1}},
    }
    for field, options in cases.items():
        error = raises(openai.BadRequestError, 400, chat, **options)
        assert field in str(error), f"the message names {field}: {error}"


@check
def a_prompt_longer_than_the_context_is_a_bad_request():
    error = raises(openai.BadRequestError, 400, complete, prompt="word " * 12_000)
    assert error.code == "context_length_exceeded", error.code


@check
def an_unknown_path_is_a_not_found_error():
    raises(openai.NotFoundError, 404, client.moderations.create, input="text")


@check
def embeddings_are_those_of_the_reference():
    fixture = Path(__file__).parents[1] / "fixtures/embedding/bert.json"
    references = json.loads(fixture.read_text())
    references = [reference for reference in references if reference["text"]]
    texts = [reference["text"] for reference in references]
    # The client asks for base64 unless told otherwise.
    answer = client.embeddings.create(model=EMBEDDING_MODEL, input=texts)
    assert [one.index for one in answer.data] == list(range(len(texts)))
    for one, reference in zip(answer.data, references):
        assert abs(sum(x * x for x in one.embedding) - 1) < 1e-4
        assert sum(x * y for x, y in zip(one.embedding, reference["vector"])) > 0.999, reference["text"]
    tokens = sum(len(reference["ids"]) for reference in references)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    alone = client.embeddings.create(model=EMBEDDING_MODEL, input=texts[0], encoding_format="float")
    assert all(abs(x - y) < 1e-6 for x, y in zip(alone.data[0].embedding, answer.data[0].embedding))
    by_tokens = client.embeddings.create(model=EMBEDDING_MODEL, input=[references[0]["ids"]], dimensions=64)
    assert by_tokens.data[0].embedding == answer.data[0].embedding


@check
def embeddings_that_cannot_be_made_name_the_field():
    create = client.embeddings.create
    raises(openai.NotFoundError, 404, create, model=MODEL, input="text")
    for field, wrong in {"input": {"input": "x " * 200}, "dimensions": {"input": "x", "dimensions": 3}}.items():
        error = raises(openai.BadRequestError, 400, create, model=EMBEDDING_MODEL, **wrong)
        assert error.param == field, error


@check
def four_async_calls_give_what_one_gives():
    async def four():
        async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=60) as parallel:

            async def one(stream):
                options = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 32}
                if not stream:
                    return (await parallel.chat.completions.create(**options)).choices[0].message.content
                pieces = await parallel.chat.completions.create(stream=True, **options)
                return "".join([piece.choices[0].delta.content or "" async for piece in pieces if piece.choices])

            return await asyncio.gather(one(False), one(True), one(False), one(True))

    assert set(asyncio.run(four())) == {chat().choices[0].message.content}


@check
def a_raw_response_has_a_request_id():
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.headers["x-request-id"], "an operator finds the request by it"


failed = []
for function in checks:
    try:
        function()
    except Exception as error:  # every check runs, so that one run shows everything that is wrong
        failed.append(function.__name__)
        print(f"FAILED {function.__name__}: {type(error).__name__}: {error}")
print(f"{len(checks) - len(failed)} of {len(checks)} checks passed with openai {openai.__version__}")
sys.exit(1 if failed else 0)

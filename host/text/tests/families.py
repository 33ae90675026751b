"""Holds the prompts of `realm model render` to those of Jinja2 as transformers sets it up, for every template of a folder.

    pip install jinja2
    python3 families.py REALM MODEL.gguf BOS EOS FOLDER_OF_JINJA_FILES

BOS and EOS are the texts of the model's own tokens. What Jinja2 refuses is not counted; arguments of calls are given to it as
a map, and where a template cannot take that, as text. Prints what differs, and the share that is identical.
"""

import copy
import json
import os
import pathlib
import subprocess
import sys
from datetime import datetime, timezone

from chat_templates import environment

CITY = {"type": "string", "description": "The city"}
OPTIONS = {"type": "object", "properties": {"x": {"type": ["string", "null"]}, "least": {"type": "number", "default": 1e-7}}}
WEATHER = {"city": CITY, "days": {"type": "integer", "default": 1}, "units": {"type": "string", "enum": ["c", "f"]},
           "where": {"type": "array", "items": {"type": "string"}}, "options": OPTIONS}
NUMBERS = {"a": {"type": "number"}, "b": {"type": "number"}}


def tool(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("get_weather", 'The weather in a city, in °C <now> & "later"', WEATHER, ["city"]),
    tool("add", "Add numbers", NUMBERS, ["a", "b"]),
]


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="call00001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def answered(name, content, id="call00001"):
    return {"role": "tool", "name": name, "tool_call_id": id, "content": content}


WANTED = {"city": "Zürich", "days": 2, "options": {"x": None, "y": 1.5, "z": True}}
TWO_CALLS = [call("add", {"a": 1, "b": 1e-7}), call("get_weather", {"city": "X"}, "call00002")]
UNICODE = "Ünï 🚀 “q” <b>&amp;</b> {{ x }} {% y %}\tz\u2028 \\n 'single' \"double\""
PARTS = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "parts"}]
# Name, messages, and what else the request says.
CHATS = [
    ("one", [said("user", "Hi")], {}),
    ("system", [said("system", "Be brief."), said("user", "What is 2+2?")], {}),
    ("turns", [said("system", "s"), said("user", "Hi"), said("assistant", "Hello!"), said("user", "Bye")], {}),
    ("closed", [said("user", "Hi"), said("assistant", "Hello")], {"add_generation_prompt": False}),
    ("spaces", [said("user", "\n  padded  \n\n"), said("assistant", "  a\n"), said("user", " x ")], {}),
    ("unicode", [said("user", UNICODE)], {}),
    ("empty", [said("system", ""), said("user", "")], {}),
    ("tools", [said("user", "Weather in Zürich?")], {"tools": TOOLS}),
    ("call", [said("user", "Weather?"), said("assistant", "", tool_calls=[call("get_weather", WANTED)]),
              answered("get_weather", '{"t": 21}'), said("assistant", "21 °C."), said("user", "Thanks")], {"tools": TOOLS}),
    ("no content", [said("user", "add"), said("assistant", None, tool_calls=[call("add", {"a": 1, "b": 2.0})]),
                    answered("add", "3")], {"tools": TOOLS}),
    ("two calls", [said("user", "both"), said("assistant", "ok", tool_calls=TWO_CALLS), answered("add", "1"),
                   answered("get_weather", "sun", "call00002"), said("user", "go on")], {"tools": TOOLS}),
    ("parts", [said("user", PARTS)], {}),
    ("reasoning", [said("user", "think"), said("assistant", "42", reasoning_content="So."), said("user", "again")], {}),
    ("thinking off", [said("user", "think"), said("assistant", "<think>\nhm\n</think>\n\n42"), said("user", "again")],
     {"enable_thinking": False}),
    ("thinking on", [said("system", "s"), said("user", "think")], {"enable_thinking": True}),
    ("names", [said("user", "Hi", name="bob"), said("assistant", "Yo", name="bot"), said("user", "ok", name="bob")], {}),
]


def with_texts(messages):
    """The messages with the arguments of calls as text."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"], ensure_ascii=False)
    return messages


def reference(template, messages, more, tokens):
    variables = {"tools": None, "documents": None, "add_generation_prompt": True, **tokens, **more}
    for form in (copy.deepcopy(messages), with_texts(messages)):
        try:
            return template.render(messages=form, **variables)
        except Exception:  # whatever a template does wrong
            continue
    return None


def request(messages, more):
    more = dict(more)
    body = {"messages": with_texts(messages)}
    for name in ("tools", "add_generation_prompt"):
        if name in more:
            body[name] = more.pop(name)
    if more:
        body["chat_template_kwargs"] = more
    return json.dumps(body)


def main():
    realm, model, bos, eos, folder = sys.argv[1:]
    env = environment()
    env.globals["strftime_now"] = lambda form: datetime.now(timezone.utc).strftime(form)
    total = same = 0
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        template = env.from_string(path.read_bytes().decode("utf-8"))
        lines = "\n".join(request(messages, more) for _, messages, more in CHATS)
        command = [realm, "model", "render", "--model", model, "--chat-template", str(path)]
        run = subprocess.run(command, input=lines, capture_output=True, text=True)
        answers = [json.loads(line) for line in run.stdout.split("\n") if line] or [{"err": run.stderr}] * len(CHATS)
        for (name, messages, more), answer in zip(CHATS, answers, strict=True):
            expected = reference(template, messages, more, {"bos_token": bos, "eos_token": eos})
            if expected is None:
                continue
            total += 1
            same += answer.get("ok") == expected
            if answer.get("ok") != expected:
                found = answer.get("ok") or answer["err"]
                at = len(os.path.commonprefix([found, expected]))
                print(f"{path.name} / {name}\n    {found[max(0, at - 60):at + 90]!r}\n    {expected[max(0, at - 60):at + 90]!r}")
    print(f"{same} of {total} prompts are identical ({100 * same / max(total, 1):.2f} %)")


if __name__ == "__main__":
    main()

"""Renders chats with Jinja2 as Hugging Face transformers sets it up, and writes what the Rust side must equal.

    pip install jinja2
    python3 chat_templates.py chat_templates.json             # writes the "expected" of every case anew
    python3 chat_templates.py OUT.json FOLDER_OF_JINJA_FILES  # cases of other templates, for a look beyond ours

A case without "expected" raised an exception; "error" is its text.
"""

import json
import pathlib
import sys
from datetime import datetime, timezone

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime(2024, 7, 26, 9, 5, 3, tzinfo=timezone.utc)


class Generation(Extension):
    """The tag marks what training looks at; it prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def environment():
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def message(source):
    """A message as templates see it, from one as the Rust type has it."""
    out = {"role": source["role"], "content": source["content"]}
    for key in ("name", "tool_call_id"):
        if source.get(key) is not None:
            out[key] = source[key]
    if source.get("tool_calls"):
        out["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": json.loads(call["arguments_json"])},
            }
            for call in source["tool_calls"]
        ]
    return out


def render(template, chat):
    return (
        environment()
        .from_string(template)
        .render(
            messages=[message(m) for m in chat["messages"]],
            tools=chat.get("tools") or None,
            add_generation_prompt=chat.get("open_turn", True),
            bos_token="<bos>",
            eos_token="<eos>",
        )
    )


def main():
    path = pathlib.Path(sys.argv[1])
    ours = pathlib.Path(__file__).with_suffix(".json")
    document = json.loads(ours.read_text(encoding="utf-8"))
    if len(sys.argv) > 2:
        document["templates"] = {
            p.name: p.read_text(encoding="utf-8") for p in sorted(pathlib.Path(sys.argv[2]).glob("*.jinja"))
        }
    document["cases"] = []
    for name, template in document["templates"].items():
        for chat_name, chat in document["chats"].items():
            case = {"template": name, "chat": chat_name}
            try:
                case["expected"] = render(template, chat)
            except Exception as error:  # whatever a template does wrong
                case["error"] = str(error)
            document["cases"].append(case)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Renders the sources of python_jinja.json with Jinja2 as transformers sets it up, and writes what the Rust side must equal.

    pip install jinja2
    python3 python_jinja.py

A case that raises has "refused" with the error's text, which need not be the same on the Rust side. Printed addresses of
objects, and what depends on chance, is not for this table.
"""

import json
import pathlib

from chat_templates import environment


def main():
    path = pathlib.Path(__file__).with_suffix(".json")
    table = json.loads(path.read_text(encoding="utf-8"))
    env = environment()
    for case in table["cases"]:
        case.pop("expected", None)
        case.pop("refused", None)
        try:
            case["expected"] = env.from_string(case["source"]).render(**table["context"])
        except Exception as error:  # whatever a template does wrong
            case["refused"] = str(error)
    path.write_text(json.dumps(table, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

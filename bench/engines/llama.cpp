#!/usr/bin/env python3
"""llama.cpp behind the contract of `realm bench --json`: the same options, the same keys.

Every figure is the best one over flash attention off and on and over the builds that there are. `--build` fetches
mainline llama.cpp and builds it for this machine (cmake and a C++ compiler are needed): once natively, and where the
processor has AMX once more without it, because either may be the faster one. GCC 12 drops the tile configuration of the
AMX code, which then crashes, so that with AMX the native build needs clang (Debian: `apt-get install clang-16`).

`llama-bench`, `llama-batched-bench` and `llama-server` are looked for in $LLAMA_CPP_BIN (folders with `:` between them),
else where `--build` puts them.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile

# The source distribution on PyPI that carries llama.cpp whole.
PACKAGE = "llama-cpp-python==0.3.36"
HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "realm" / "llama.cpp"
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def source():
    """The folder of the sources, fetched when it is not there."""
    if not list(CACHE.glob("source/*/vendor/llama.cpp/CMakeLists.txt")):
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
            fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", folder, PACKAGE]
            tools = ["install", "--quiet", "scikit-build-core", "flit-core", "hatchling"]
            for command in (tools, fetch):
                subprocess.run([f"{folder}/venv/bin/pip", *command], check=True)
            archive = next(pathlib.Path(folder).glob("*.tar.gz"))
            with tarfile.open(archive) as tar:
                tar.extractall(CACHE / "source", filter="data")
    return next(CACHE.glob("source/*/vendor/llama.cpp"))


def has_amx():
    """Whether the processor has AMX for integers, as the kernel shows it."""
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return any("amx_int8" in line.split() for line in info.splitlines() if line.startswith("flags"))


def clang():
    """The newest clang from 16 on: its C and its C++ compiler."""
    for name in (*(f"clang-{version}" for version in range(25, 15, -1)), "clang"):
        if path := shutil.which(name):
            stated = subprocess.run([path, "-dumpversion"], capture_output=True, text=True, check=True).stdout
            if int(stated.split(".")[0]) >= 16:
                return path, path.replace("clang", "clang++")
    sys.exit("this processor has AMX, whose code in llama.cpp needs clang 16 or newer: apt-get install clang-16")


def variants():
    """The builds that this machine calls for: name and options of cmake."""
    if not has_amx():
        return {"native": []}
    c, cpp = clang()
    compilers = [f"-DCMAKE_C_COMPILER={c}", f"-DCMAKE_CXX_COMPILER={cpp}"]
    flags = [f"-DCMAKE_C_FLAGS={WITHOUT_AMX}", f"-DCMAKE_CXX_FLAGS={WITHOUT_AMX}"]
    return {"native": compilers, "without-amx": compilers + flags}


def build(jobs):
    """Fetches the sources and builds the programs for this machine, in each of its variants."""
    options = [
        "-DGGML_NATIVE=ON", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_UI=OFF", "-DBUILD_SHARED_LIBS=OFF",
    ]
    found = source()
    for name, extra in variants().items():
        folder = CACHE / f"build-{name}"
        subprocess.run(["cmake", "-S", found, "-B", folder, *options, *extra], check=True)
        subprocess.run(["cmake", "--build", folder, "-j", str(jobs), "--target", *PROGRAMS], check=True)


def programs(name):
    """The paths of one of the programs, one for each build."""
    if given := os.environ.get("LLAMA_CPP_BIN"):
        folders = [pathlib.Path(folder) for folder in given.split(":")]
    else:
        folders = [CACHE / f"build-{variant}" / "bin" for variant in ("native", "without-amx")]
    found = [folder / name for folder in folders if (folder / name).is_file()]
    if not found:
        sys.exit(f"there is no {name}: set LLAMA_CPP_BIN to the folder that has it, or run {HERE}/llama.cpp --build")
    return found


def output(command):
    """What a program prints, or its complaint."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def bench(options, **asked):
    """What llama-bench gives of every build, with flash attention off and on."""
    arguments = [part for key, value in asked.items() for part in (f"-{key}", value)]
    rows = []
    for path in programs("llama-bench"):
        command = [path, "-m", options.model, "-t", options.threads, "-r", options.reps, "-fa", "0,1", "-o", "json"]
        rows += json.loads(output(command + arguments))
    return rows


def best(rows):
    """The fastest of them, by its median."""
    return max((sorted(row["samples_ts"]) for row in rows), key=statistics.median)


def batched(options):
    """Medians of decoding in batches: [{rows, decode_tok_s}]."""
    if not options.rows:
        return []
    most = max(options.rows) * (options.context + options.decode)
    ways = [(path, flash) for path in programs("llama-batched-bench") for flash in ("off", "on")]
    rates = {}
    for path, flash in ways:
        for _ in range(options.reps):
            text = output([
                path, "-m", options.model, "-t", options.threads, "-c", max(most, 512), "-fa", flash,
                "-npp", options.context, "-ntg", options.decode, "-npl", ",".join(map(str, options.rows)), "--output-format", "jsonl",
            ])
            for line in text.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    rates.setdefault((row["pl"], path, flash), []).append(row["speed_tg"])
    return [
        {"rows": rows, "decode_tok_s": max(statistics.median(rates[rows, *way]) for way in ways)}
        for rows in options.rows
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", action="store_true", help="fetch and build llama.cpp, and end")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="of --build, at once")
    parser.add_argument("--model")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--rows", type=lambda text: [int(rows) for rows in text.split(",")], default=[])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.build:
        return build(options.jobs)
    if not options.model:
        parser.error("--model is needed")
    options.threads = options.threads or len(os.sched_getaffinity(0))
    prefill = bench(options, p=options.prefill, n=0)
    decode = bench(options, p=0, n=options.decode, d=options.context)
    report = {
        "engine": "llama.cpp",
        "version": f"{prefill[0]['build_commit']} ({PACKAGE})",
        "builds": [path.parent.parent.name for path in programs("llama-bench")],
        "file": options.model,
        "threads": options.threads,
        "reps": options.reps,
        "prefill_tokens": options.prefill,
        "decode_tokens": options.decode,
        "context_tokens": options.context,
        "prefill_tok_s": statistics.median(best(prefill)),
        "decode_tok_s": statistics.median(best(decode)),
        "batched": batched(options),
    }
    if options.json:
        return print(json.dumps(report))
    for key, value in report.items():
        print(f"{key:16}{value}")


if __name__ == "__main__":
    main()

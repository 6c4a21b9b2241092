"""A stand-in for OLMES's first process: its arguments, what it refuses, and the command of its second process."""

import argparse
import json
import shlex
import subprocess
import sys


def make_cli_command(command, arguments):
    parts = [command]
    for key, value in arguments.items():
        if value is None:
            continue
        parts.append(f"--{key}")
        values = value if isinstance(value, list) else [value]
        parts += [shlex.quote(v if isinstance(v, str) else json.dumps(v)) for v in values]
    return " ".join(parts)


SUITES = {"mmlu:0shot_cot::tulu3": ["mmlu_anatomy:0shot_cot::tulu3", "mmlu_virology:0shot_cot::tulu3"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--model-type", choices=["hf", "vllm"])
    parser.add_argument("--model-args")
    parser.add_argument("--task", nargs="+")
    parser.add_argument("--task-args", default="{}")
    parser.add_argument("--random-subsample-seed", type=int)
    parser.add_argument("--batch-size")
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--output-dir")
    asked = parser.parse_args()
    assert "=" not in asked.model, "a model path with = is read as arguments"
    model = {"model": asked.model, "model_type": asked.model_type, **json.loads(asked.model_args)}
    unknown = set(model) - {"model", "model_type", "max_length", "custom_kwargs"}
    assert not unknown, f"unknown model args {unknown}"
    tasks = []
    for task in asked.task:
        given = json.loads(task) if task.startswith("{") else {"task_name": task}
        for alias in SUITES.get(given["task_name"], [given["task_name"]]):
            config = {
                **given,
                "task_name": alias.partition("::")[0],
                "random_subsample_seed": asked.random_subsample_seed,
                **json.loads(asked.task_args),
            }
            # As there, a task that is given as JSON has no alias but its own.
            tasks.append(config if task.startswith("{") else {**config, "metadata": {"alias": alias}})
    name = model.pop("model")
    command = make_cli_command(
        "python -m oe_eval.run_eval",
        {
            "task": tasks,
            "model": name,
            "model-args": model,
            "output-dir": asked.output_dir,
            "gpus": asked.gpus,
            "batch-size": asked.batch_size,
        },
    )
    sys.exit(subprocess.run(command, shell=True).returncode)

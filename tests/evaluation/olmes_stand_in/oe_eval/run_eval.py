"""A stand-in for OLMES's second process: it asks, grades (is the answer 7?) and writes the files that OLMES writes."""

import argparse
import copy
import json
import os

import lm_eval
from oe_eval.components.requests import GenerateUntilRequest
from oe_eval.models.eleuther_huggingface import HFLM_Verbose
from oe_eval.models.eleuther_vllm_causallms import VLLM_Verbose

_parser = argparse.ArgumentParser()
_parser.add_argument("--model")
_parser.add_argument("--model-args")
_parser.add_argument("--task", nargs="+")
_parser.add_argument("--output-dir")
_parser.add_argument("--gpus", type=int)
_parser.add_argument("--batch-size")


class Instance:
    request_type = "generate_until"

    def __init__(self, request):
        self.request = request


def convert_chat_instance(model, ins, chat_template=None):
    context = ins.request.context
    turns = "".join(f"[{m['role']}] {m['content']}" for m in context["messages"])
    ins.request.context = turns + "[assistant] " + context.get("assistant_prefix", "")
    return ins


def write(folder, index, name, kind, rows):
    with open(os.path.join(folder, f"task-{index:03d}-{name}-{kind}"), "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def run_eval(arguments):
    assert lm_eval.REAL, "another lm_eval is in the way"
    model_config = {"model": arguments["model"], **json.loads(arguments["model_args"])}
    folder = arguments["output_dir"]
    os.makedirs(folder, exist_ok=True)
    everything = []
    for index, task in enumerate(map(json.loads, arguments["task"])):
        count = task.get("limit", 3)
        generation = {"max_gen_toks": 20, "temperature": 0.0} | task.pop("chat_overrides", {}).get(
            "generation_kwargs", {}
        )
        model = {"hf": HFLM_Verbose, "vllm": VLLM_Verbose}[model_config["model_type"]](model_config["model"])
        predictions, requests = [], []
        for number in range(count):
            messages = [{"role": "user", "content": f"What is {number} + {7 - number}?"}]
            context = {"messages": messages, "assistant_prefix": "Answer:"}
            ins = Instance(GenerateUntilRequest(context, [";"], generation))
            requests.append(
                {
                    "doc_id": number,
                    "native_id": f"q{number}",
                    "idx": 0,
                    "request": {"context": copy.deepcopy(context)},
                }
            )
            convert_chat_instance(model, ins)
            (result,) = model.generate_until_verbose([ins.request])
            right = float("7" in result["continuation"])
            predictions.append(
                {
                    "doc_id": number,
                    "native_id": f"q{number}",
                    "label": "7",
                    "metrics": {"exact_match": right},
                    "model_output": [result],
                }
            )
        score = sum(p["metrics"]["exact_match"] for p in predictions) / max(1, count)
        record = {
            "task_name": task["task_name"],
            "task_idx": index,
            "num_instances": count,
            "model_config": model_config,
            "task_config": {**task, "num_shots": 0, "primary_metric": "exact_match", "generation_kwargs": generation},
            "metrics": {"primary_score": score, "exact_match": score},
        }
        write(folder, index, task["task_name"], "predictions.jsonl", predictions)
        write(folder, index, task["task_name"], "requests.jsonl", requests)
        write(folder, index, task["task_name"], "metrics.json", [record])
        everything.append(record)
    suite = {
        "task_name": "suite",
        "task_idx": None,
        "num_instances": sum(r["num_instances"] for r in everything),
        "metrics": {"primary_score": 0.0},
        "task_config": {},
    }
    with open(os.path.join(folder, "metrics-all.jsonl"), "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in [suite, *everything]))
    with open(os.path.join(folder, "metrics.json"), "w") as file:
        json.dump({"tasks": []}, file)


if __name__ == "__main__":
    run_eval(vars(_parser.parse_args()))

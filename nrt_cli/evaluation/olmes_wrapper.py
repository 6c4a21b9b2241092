"""Runs OLMES, in its own interpreter, for a model with our think tokens. Started by path; imports nothing of ours.

OLMES reads documents from the hub. `custom_kwargs.documents` of `--model-args` names a folder of them instead: a file
for each subset, or one for all, and the name of their split.

A model of ours may say think tokens in an answer, which transformers' decoding drops without a word: they are forbidden
there, as in our own backend. OLMES knows `</think>` alone, the tokenizer's eos alone, and one budget for trace and
answer. `custom_kwargs.nrt` teaches it, where `thinks` is true:

- `start` follows the prompt of what is generated, and `end` the trace; the beginning of an answer that a task gives
  comes after both;
- `trace_tokens` is a budget of the trace's own, to which no stop string of the task applies: it is generated first, and
  the answer after it, with the task's budget and stops. null is OLMES to the letter: both are one text of the task's
  budget, cut at the task's stops, without a given beginning; what has no `end` in it has no answer;
- `stops`, a list, end trace and answer: transformers stops at each of them, and OLMES would go on to the padding;
- transformers' decoding keeps special tokens and the first space, as vLLM's does, or the end of a trace would be lost.

Graders see the answer only. `olmes` starts `python -m oe_eval.run_eval`: this file instead, so the interpreter stays.
"""

import importlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import threading
import time
import types

RUN_EVAL = "run_eval"


def teach(start, end, stops, trace_tokens, thinks):
    """Patch prompts, generation and decoding; where nobody is to think, generation alone."""
    from oe_eval import run_eval
    from oe_eval.components.requests import GenerateUntilRequest
    from oe_eval.models.eleuther_huggingface import HFLM_Verbose
    from oe_eval.models.eleuther_vllm_causallms import VLLM_Verbose

    def unsaid(model):
        """Settings under which an answer has no think token in it."""
        ids = [model.tokenizer.convert_tokens_to_ids(mark) for mark in (start, end) if mark]
        return (
            {"logit_bias": dict.fromkeys(ids, -100.0)} if isinstance(model, VLLM_Verbose) else {"suppress_tokens": ids}
        )

    def direct(generate):
        def generate_until_verbose(self, requests, **options):
            settings = [{**(request.generation_kwargs or {}), **unsaid(self)} for request in requests]
            asked = zip(requests, settings, strict=True)
            return generate(self, [GenerateUntilRequest(r.context, r.stop_sequences, s) for r, s in asked], **options)

        return generate_until_verbose

    convert = run_eval.convert_chat_instance

    def convert_chat_instance(model, instance, chat_template=None):
        request = instance.request
        if instance.request_type == "generate_until" and not isinstance(request.context, str):
            request.begun = request.context.get("assistant_prefix") or ""
            request.context = {**request.context, "assistant_prefix": ""}
        return convert(model, instance, chat_template)

    def thinking(generate):
        def generate_until_verbose(self, requests, **options):
            def size(text):
                return len(self.tokenizer(text, add_special_tokens=False).input_ids)

            def said(asked):
                """Results of (request, its text, stop strings, changes of its settings)."""
                texts = [
                    GenerateUntilRequest(text, [*until, *stops], {**request.generation_kwargs, **changes})
                    for request, text, until, changes in asked
                ]
                return generate(self, texts, **options)

            def split(result, trace, stop):
                sizes = {"trace_tokens": size(trace), "answer_tokens": size(result["continuation"])}
                return {**result, "reasoning_content": trace, "nrt": {**sizes, "trace_stop": stop}}

            begun = [request.context + start for request in requests]
            untils = [request.stop_sequences or [] for request in requests]
            budgets = [request.generation_kwargs["max_gen_toks"] for request in requests]
            found = []
            if trace_tokens is None:
                together = said([(*each, {}) for each in zip(requests, begun, untils, strict=True)])
                for budget, result in zip(budgets, together, strict=True):
                    trace, mark, answer = result["continuation"].partition(end)
                    full = result["num_tokens"] >= budget and "continuation_raw" not in result
                    stop = "end" if mark else "cap" if full else "eos"
                    found.append(split({**result, "continuation": answer}, trace, stop))
                return found
            # A trace leaves the answer its budget, or half of what the prompt leaves of the context.
            caps = []
            for text, budget in zip(begun, budgets, strict=True):
                room = self.max_length - size(text)
                caps.append(max(1, min(trace_tokens, max(room - budget, room // 2))))
            # The prompt is never cut. Settings of their own would keep requests out of a batch: one cap for all here.
            whole = {"truncate_context": False, "min_acceptable_gen_toks": 1}
            longest = {**whole, "max_gen_toks": max(caps)}
            traces = said([(request, text, [end], longest) for request, text in zip(requests, begun, strict=True)])
            thoughts = []
            for result, cap in zip(traces, caps, strict=True):
                ids = self.tokenizer(result["continuation"], add_special_tokens=False).input_ids
                text = result["continuation"] if len(ids) <= cap else tok_decode(self, ids[:cap])
                # What stopped it, which vLLM does not tell.
                rest = result.get("continuation_raw", "")[len(result["continuation"]) :]
                ended = result["num_tokens"] < max(caps) or rest.startswith(end)
                stop = "cap" if len(ids) > cap else "eos" if rest and not rest.startswith(end) else "end"
                thoughts.append((text, stop if ended or rest else "cap"))
            answers = said(
                [
                    (request, text + trace + end + request.begun, until, {**whole, **unsaid(self)})
                    for request, text, until, (trace, _) in zip(requests, begun, untils, thoughts, strict=True)
                ]
            )
            return [split(result, *thought) for result, thought in zip(answers, thoughts, strict=True)]

        return generate_until_verbose

    def tok_decode(self, tokens, skip_special_tokens=False):
        # After a letter: some tokenizers drop the space that a text begins with.
        tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        before = self.tokenizer.encode("a", add_special_tokens=False)
        first, whole = (self.tokenizer.decode(ids, skip_special_tokens=False) for ids in (before, [*before, *tokens]))
        return whole.removeprefix(first)

    for model in (HFLM_Verbose, VLLM_Verbose):
        model.generate_until_verbose = (thinking if thinks else direct)(model.generate_until_verbose)
    if thinks:
        run_eval.convert_chat_instance = convert_chat_instance
        HFLM_Verbose.tok_decode = tok_decode


def read_from(folder, split):
    """Local documents in place of the hub's."""
    import datasets

    def load_dataset(path, name=None, **_):
        files = (os.path.join(folder, f"{each}.jsonl") for each in (name, "all"))
        with open(next(file for file in files if os.path.isfile(file)), encoding="utf-8") as lines:
            return datasets.DatasetDict({split: datasets.Dataset.from_list([json.loads(line) for line in lines])})

    datasets.load_dataset = load_dataset


def stay_here():
    """What OLMES's imports would fetch comes from the packages that are there; a user's own settings stand."""
    litellm = importlib.util.find_spec("litellm")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if litellm and litellm.origin:
        bundled = os.path.join(os.path.dirname(litellm.origin), "litellm_core_utils", "tokenizers")
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", bundled)


def anything(name):
    """What a module that is missing is taken to have."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def lacks(aliases):
    """What keeps OLMES from running: modules that are missing, what else broke, tasks it has not, and nltk's data."""
    missing, broken = [], None
    while broken is None:
        try:
            for name in ("launch", "run_eval", "dependencies.ifeval.utils"):
                importlib.import_module(f"oe_eval.{name}")
            break
        except ModuleNotFoundError as error:
            absent = str(error.name)
            broken = str(error) if absent in missing else None
            missing.append(absent)
            empty = types.ModuleType(absent)  # to see what else is missing
            vars(empty).update(__path__=[], __getattr__=anything)
            sys.modules[absent] = empty
            for name in [name for name in sys.modules if name.startswith("oe_eval")]:
                del sys.modules[name]
        except Exception as error:
            broken = f"{type(error).__name__}: {error}"
    found = {"missing": sorted({name.partition(".")[0] for name in missing}), "broken": broken}
    if broken is not None:
        return {**found, "unknown": [], "data": [], "gpus": 0}
    import nltk
    import torch
    from oe_eval.configs.task_suites import TASK_SUITE_CONFIGS
    from oe_eval.configs.tasks import TASK_CONFIGS

    data = []
    for name in ("tokenizers/punkt", "corpora/stopwords"):
        try:
            nltk.data.find(name)
        except LookupError:
            data.append(os.path.basename(name))
    unknown = [alias for alias in aliases if alias not in TASK_CONFIGS and alias not in TASK_SUITE_CONFIGS]
    return {**found, "unknown": unknown, "data": data, "gpus": torch.cuda.device_count()}


def end_with(parent):
    """Both processes end when the one that started them is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGTERM)


def main():
    # The folder of this file is on the path, and a neighbour of it is named like a package that OLMES needs.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.getcwd()) != here]
    stay_here()
    if sys.argv[1:2] == ["lacks"]:
        print(json.dumps(lacks(sys.argv[2:])))
        return
    if sys.argv[1:2] != [RUN_EVAL]:
        if parent := os.environ.get("NRT_PARENT"):
            threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
        # `olmes`, whose second process is this file again.
        from oe_eval import launch as olmes

        again = shlex.join([sys.executable, os.path.abspath(__file__), RUN_EVAL])
        make = olmes.make_cli_command
        olmes.make_cli_command = lambda command, arguments: make(
            again if command == "python -m oe_eval.run_eval" else command, arguments
        )
        olmes.main()
        return
    del sys.argv[1]
    from oe_eval import run_eval

    arguments = vars(run_eval._parser.parse_args())
    ours = json.loads(arguments["model_args"]).get("custom_kwargs") or {}
    if ours.get("documents"):
        read_from(**ours["documents"])
    if ours.get("nrt"):
        teach(**ours["nrt"])
    run_eval.run_eval(arguments)


if __name__ == "__main__":
    main()

"""Runs OLMES, in its own interpreter, for a model with our think tokens. Started by path; imports nothing of ours.

OLMES knows `</think>` alone, and the tokenizer's eos alone. With `NRT_THINK_END` in the environment, this file teaches
it four things:

- the prompt of what is generated ends in `NRT_THINK_START`, and has no beginning of an answer after it;
- `--model-args {"process_output": "nrt"}` cuts the trace off, so graders see the answer only;
- transformers' decoding keeps special tokens, as vLLM's does there already, or the end of the trace would be lost;
- a reply ends with the first of `NRT_STOPS`, a JSON list: transformers stops at each of them, and OLMES would go on to
  the padding.

`olmes` starts `python -m oe_eval.run_eval` in a shell: this file takes that place too, so the interpreter stays.
"""

import json
import os
import shlex
import sys

RUN_EVAL = "run_eval"


def teach(start, end, stops):
    """Register a processor of outputs and patch prompts and decoding."""
    from oe_eval import run_eval
    from oe_eval.models import output_processors
    from oe_eval.models.eleuther_huggingface import HFLM_Verbose

    seen = {}
    convert = run_eval.convert_chat_instance

    def convert_chat_instance(model, instance, chat_template=None):
        seen["tokenizer"] = model.tokenizer
        if instance.request_type == "generate_until" and not isinstance(instance.request.context, str):
            instance.request.context["assistant_prefix"] = start
        return convert(model, instance, chat_template)

    def process(result):
        """In OLMES's form: a result's dict in, the same with the answer as its continuation out."""
        if "continuation" not in result:
            return result
        text = result["continuation"]
        if start and text.startswith(start):
            text = text[len(start) :]
        for stop in stops:
            text = text.partition(stop)[0]
        trace, _, answer = text.partition(end)  # without an end there is no answer yet
        return {
            **result,
            "continuation": answer,
            "reasoning_content": trace,
            "nrt_trace_closed": end in text,
            "nrt_trace_tokens": len(seen["tokenizer"](trace, add_special_tokens=False).input_ids) if seen else None,
        }

    def tok_decode(self, tokens, skip_special_tokens=False):
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    run_eval.convert_chat_instance = convert_chat_instance
    output_processors.MODEL_OUTPUT_PROCESSORS["nrt"] = process
    HFLM_Verbose.tok_decode = tok_decode


def main():
    # The folder of this file is on the path, and a neighbour of it is named like a package that OLMES needs.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.getcwd()) != here]
    if sys.argv[1:2] != [RUN_EVAL]:
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
    if os.environ.get("NRT_THINK_END"):
        stops = json.loads(os.environ.get("NRT_STOPS", "[]"))
        teach(os.environ.get("NRT_THINK_START", ""), os.environ["NRT_THINK_END"], stops)
    from oe_eval import run_eval

    run_eval.run_eval(vars(run_eval._parser.parse_args()))


if __name__ == "__main__":
    main()

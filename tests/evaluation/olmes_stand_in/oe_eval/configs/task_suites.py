TASK_SUITE_CONFIGS = {"mmlu:0shot_cot::tulu3": {}}

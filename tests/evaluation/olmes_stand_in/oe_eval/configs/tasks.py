TASK_CONFIGS = {"gsm8k::zs_cot": {}}

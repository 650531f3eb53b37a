"""The settings files that ship with two earlier programs, rebuilt from what is known of them."""

from __future__ import annotations

from score_rl.prior.conversion import put

LORA = {"r": 16, "alpha": 16, "dropout": 0.0}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = {"system": "Reason inside think, answer inside answer.", "self_correction": "Check reasoning, answer and form."}


def by571(name: str, **changes: object) -> dict[str, object]:
    """One of the three files that ship with BY571/SCoRe; the words of the prompts are others."""
    model, size, length, prompts = {
        "gsm8k": ("Qwen/Qwen3-0.6B", 32, 840, (1024, 2560)),
        "arithmetic": ("Qwen/Qwen3-0.6B", 16, 768, (384, 1024)),
        "math": ("unsloth/Qwen3-4B-unsloth-bnb-4bit", 8, 2048, (2000, 6000)),
    }[name]
    large = name == "math"
    source = {
        "gsm8k": {"name": "openai/gsm8k", "config_name": "main", "input_field": "question", "target_field": "answer"},
        "arithmetic": {
            "name": "torchtrade/arithmetic-hard-qwen3-0.6b",
            "input_field": "question",
            "target_field": "answer",
        },
        "math": {
            "name": "Sebasdi/math_final_answer",
            "input_field": "problem",
            "target_field": "final_answer_solution",
        },
    }[name]
    train = {
        "stage1_batch_size": size,
        "stage2_batch_size": size,
        "learning_rate": "5e-6" if large else "2e-5",
        "stage1_epochs": 1,
        "stage2_epochs": 1,
        "beta1": 0.01,
        "beta2": 0.1,
        "alpha": 10,
        "max_new_tokens_attempt1": length,
        "max_new_tokens_attempt2": length,
        "max_prompt_length_attempt1": prompts[0],
        "max_prompt_length_attempt2": prompts[1],
        "generation_temperature": 1.0 if large else 0.6,
        "seed": 3407,
    }
    train |= {} if large else {"length_norm": "sequence"}
    train |= {"checkpoint_every": 4} if name == "arithmetic" else {}
    evaluation = {"batch_size": 16 if large else 50, "max_examples": {"gsm8k": 200, "arithmetic": 50, "math": 16}[name]}
    content: dict[str, object] = {
        "run_name": f"score-{name}",
        "wandb_project": f"SCoRe-{name}",
        "model": {
            "name": model,
            "max_seq_length": {"gsm8k": 6144, "arithmetic": 2048, "math": 12288}[name],
            "load_in_4bit": large,
            "chat_template": "",
            "fast_inference": large,
            "fast_inference_gpu_mem": 0.5,
            "lora": {**LORA, "target_modules": TARGETS},
        },
        "dataset": {**source, "test_split_size": 50 if name == "arithmetic" else 200},
        "prompts": dict(WORDS),
        "reward": {"fn": "format_and_match", "answer_extractor": "math_final_answer" if large else "gsm8k_hash"},
        "train": train,
        "eval": {**evaluation, "generation_temperature": 0.6 if large else 0.0},
    }
    if large:
        content["output"] = {"dir": "outputs"}
    for path, value in changes.items():
        put(content, path, value)
    return content


def vityavitalich(state: str, **changes: object) -> dict[str, object]:
    """The file that ships with VityaVitalich/SCoRe, in its older state or the newer one with LoRA."""
    content: dict[str, object] = {
        "model_path": "Qwen/Qwen2.5-Math-1.5B-Instruct",
        "cache_dir": "cache",
        "random_seed": 42,
        "wandb_project_name": "SCoRE",
        "task_type": "math",
        "data_path": "data/math500",
        "id_col": "unique_id",
        "question_col": "problem",
        "gold_col": "answer",
        "run_name": "test_score_math",
        "evaluator_mode": "final",
        "evaluator_function": "math_acc",
        "evaluator_answer_marker": "Final Answer: The final answer is",
        "few_shot_dir": "few_shots",
        "number_output_initial_generations": 1,
        "temperature": 0.7,
        "max_tokens": 1024,
        "train_stage": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "local_rollout_forward_batch_size": 2,
        "total_episodes": 1000,
        "learning_rate": 6e-5,
        "num_warmup_steps": 20,
        "corr_kl_coef": 0.1,
        "init_kl_coef": 0.2,
        "save_steps": 100,
        "stage2_alpha": 0.5,
    }
    if state == "newer":
        content |= {"run_name": "test_lora", "temperature": 0.9, "train_stage": 1, "gradient_accumulation_steps": 4}
        content |= {"local_rollout_forward_batch_size": 4, "total_episodes": 100, "learning_rate": 5e-5}
        content |= {"num_warmup_steps": 100, "save_steps": 1, "stage2_alpha": 10}
        content |= {"use_lora": True, "lora_rank": 32, "lora_alpha": 8, "lora_dropout": 0.1}
    return content | changes


FILES = {f"by571 {name}": by571(name) for name in ("gsm8k", "arithmetic", "math")}
FILES |= {f"vityavitalich {state}": vityavitalich(state) for state in ("older", "newer")}

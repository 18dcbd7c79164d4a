"""What the chapters ask the engines' own classes: by name, a script of this folder and its data.

The answers lie in `results/upstream`; `python -m inferlab.lab upstream --record` asks again. A page
replays one with `data, answer = lab.upstream_answer(name)`. Small on purpose: everything can be
followed by hand; week 4's random operations are the exception. Pages read it too, so it imports
nothing that a student's bundle lacks.
"""

from inferlab.lab.pool_replay import NUM_HASHES, random_operations

CHECKPOINT = "inferlab/models/checkpoints/tiny-chat"  # for its configuration; no weights are read


def tokens(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


# Week 3: a step's cost, for the model that runs here and for the one that fills a GPU.

TINY_CHAT = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 640,
    "max_position_embeddings": 8192,
}
LLAMA_8B = TINY_CHAT | {
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}
PERFORMANCE_MODEL = {
    "models": {"tiny-chat": TINY_CHAT, "Llama-3.1-8B": LLAMA_8B},
    "steps": [
        {"prefills": [[2048, 2048]]},
        {"prefills": [[512, 2048]]},  # the last of four chunks
        {"decodes": [[1, 2048]]},
        {"decodes": [[1, 2048]] * 16},
        {"decodes": [[1, 2048]] * 64},
        {"prefills": [[512, 512]], "decodes": [[1, 2048]] * 16},
    ],
}

# Week 4: what vLLM says of its cache when it starts, and its block pool under random operations.

MEMORY = {"block_size": 32, "kv_cache_memory_bytes": 128 * 2**20}
START_UP = {
    "checkpoint": CHECKPOINT,
    "cases": [
        {"max_model_len": 1024, "num_requests": 1, **MEMORY},
        *(
            # A request of 512 tokens fills 16 blocks.
            {
                "max_model_len": 512,
                "num_requests": num_requests,
                "num_gpu_blocks_override": num_blocks,
                **MEMORY,
            }
            for num_blocks, num_requests in ((6, 1), (16, 1), (17, 1), (18, 2), (32, 2), (33, 2))
        ),
    ],
}
BLOCK_POOL = {
    "num_blocks": 24,
    "num_hashes": NUM_HASHES,
    "operations": random_operations(seed=4, num_operations=600),
}

# Week 5: who hits what in a pool of seven usable blocks of four tokens.

SYSTEM = tokens(10, 8)  # a system prompt of exactly two blocks
TURN = tokens(40, 6)
PREFIX_HITS = {
    "num_blocks": 8,
    "block_size": 4,
    "operations": [
        ["admit", "first", [*SYSTEM, 20, 21], ""],
        ["admit", "second", [*SYSTEM, 30, 31, 32], ""],  # shares blocks with a request that runs
        ["free", "first"],
        ["free", "second"],
        ["admit", "all cached", SYSTEM, ""],  # its last token has to be computed again
        ["admit", "tenant", [*SYSTEM, 20, 21], "salt"],
        ["free", "all cached"],
        ["free", "tenant"],
        ["admit", "turn 1", TURN, ""],
        ["decode", "turn 1", [46, 47, 48]],  # the agent's own words fill a block too
        ["free", "turn 1"],
        ["admit", "turn 2", [*TURN, 46, 47, 48, 50], ""],
        ["admit", "too long", tokens(60, 20), ""],
        ["admit", "stranger", tokens(60, 4), ""],  # what it evicts is cached
        ["free", "turn 2"],
        ["free", "stranger"],
        ["admit", "first again", [*SYSTEM, 20, 21], ""],  # the head of its prompt has survived
        ["free", "first again"],
        ["admit", "tenant again", [*SYSTEM, 20, 21], "salt"],  # shares with its like
    ],
}

# Week 5: eight requests of each kind, all of them in flight, so that nothing is evicted.

SAVINGS = {
    "shared": [[*tokens(100, 64), 10 + i] for i in range(8)],  # a long system prompt
    "identical": [tokens(200, 64)] * 8,  # parallel samples of one prompt
    "short": [tokens(300, 3)] * 8,  # no block is full
    "unshared": [tokens(400 + 20 * i, 9) for i in range(8)],
}
PREFIX_SAVINGS = {
    "num_blocks": 96,
    "block_size": 4,
    "operations": [
        ["admit", f"{kind} {i}", prompt, ""]
        for kind, prompts in SAVINGS.items()
        for i, prompt in enumerate(prompts)
    ],
}

# Week 5: the prompts of `week05/prefix-length`, one case for each length and repeat.

PREFIX_REPETITION = {
    "checkpoint": CHECKPOINT,
    "num_prompts": 48,
    "num_prefixes": 8,
    "suffix_tokens": 32,
    "cases": [[length, seed] for length in (16, 96, 160, 512) for seed in (0, 1, 2)],
}

# Week 6: a tree that splits, is locked and evicts; then queues that it puts in order.

RADIX_TREE = {
    "show_tree": True,
    "operations": [
        ["insert", [1, 2, 3, 4, 5, 6], "", 100],
        ["insert", [1, 2, 3, 7, 8], "", 200],  # splits the first node
        ["insert", [1, 2, 3, 4, 5, 6, 9], "", 300],
        ["match", [1, 2, 3, 4, 0], ""],  # ends inside a node, and splits it
        ["insert", [1, 2, 3], "tenant", 400],
        ["insert", [1, 2], "", 500],  # was there
        ["lock", [1, 2, 3, 7, 8], ""],
        ["evict", 1],
        ["evict", 100],  # more than there is: what is locked stays
        ["unlock", 0],
        ["evict", 3],  # a whole leaf at a time
        ["evict", 1],
    ],
}

# A prefix shorter than 32 tokens is not worth waiting for.
FEW_SHOT, TOOLS, ALONE = tokens(1000, 40), tokens(2000, 60), tokens(3000, 60)


def queue(cached: list[list[int]], *waiting: list[int]) -> dict[str, object]:
    """One request arrives a second, and none has a salt or is urgent."""
    requests = [
        {"token_ids": token_ids, "arrival_time": float(second)}
        for second, token_ids in enumerate(waiting)
    ]
    return {"cached": [[token_ids, ""] for token_ids in cached], "waiting": requests}


def crowd(num_waiting: int) -> dict[str, object]:
    """Only the last to arrive hits the cache."""
    others = [[second] for second in range(num_waiting - 1)]
    return queue([FEW_SHOT], *others, [*FEW_SHOT, 1])


RADIX_QUEUES = {
    "checkpoint": CHECKPOINT,
    "queues": [
        # The longest match is on one branch of the tree, most of the requests on the other.
        queue(
            [FEW_SHOT, TOOLS],
            *([*FEW_SHOT, 1], [*TOOLS, 1], ALONE, [*FEW_SHOT, 2], [*TOOLS, 2], [*FEW_SHOT, 3]),
        ),
        # Nothing is cached yet: of those who share a prefix, one goes first and the others wait.
        queue([], [*TOOLS, 1], [*TOOLS, 2], [*FEW_SHOT, 1], [*TOOLS, 3], [*FEW_SHOT, 2]),
        queue([FEW_SHOT], *(tokens(3000 + 100 * i, 40) for i in range(5))),  # nothing is shared
        crowd(128),
        crowd(129),  # too many to match: lpm silently becomes fcfs
    ],
}

# One request that shares nothing came first; those that share a cached prefix keep coming.
STARVATION = {
    "checkpoint": CHECKPOINT,
    "policies": ["fcfs", "lpm", "dfs-weight", "hrrn"],
    "queue": {
        "alone": ALONE,
        "prefix": FEW_SHOT,
        "suffix_tokens": 16,
        "num_waiting": 4,
        "turns": 40,
    },
}

# A program with a fork: a plan, three views of it, a verdict.
PROGRAM = {
    "server": {
        "model-path": CHECKPOINT,
        "dtype": "float32",
        "context-length": 1024,
        "max-total-tokens": 8192,
        "mem-fraction-static": 0.1,
        "device": "cpu",
        "attention-backend": "torch_native",
        "sampling-backend": "pytorch",
        "cuda-graph-backend-decode": "disabled",
        "cuda-graph-backend-prefill": "disabled",
        "disable-overlap-schedule": True,
        "sleep-on-idle": True,
        "skip-server-warmup": True,
    },
    "rules": (
        "<|bos|><|user|>You help with short tasks. Read the task with care and name the numbers. "
        "Work in small steps and keep each step on one line. Check the sum before you answer. "
        "Do not add words that nobody asked for. If a number is missing, say which one.<|end|>"
    ),
    "tasks": {
        "first": "<|user|>What is 61 + 99?<|end|>",
        "second": "<|user|>List four animals that can swim.<|end|>",
    },
    "views": ["Add the tens.", "Count up by ones.", "Round, then mend."],
    "settings": {"max_tokens": 16, "temperature": 0, "ignore_eos": True},
}

# The client's own workload, on a server with room for three of its requests. A run leaves them in a
# file, which a later one in the same home reads, whatever order it asks for.
GENERATED_PREFIXES = {
    "server": PROGRAM["server"] | {"max-total-tokens": 256},
    "client": (
        "--backend sglang --model tiny-chat --dataset-name generated-shared-prefix "
        f"--tokenizer {CHECKPOINT} --gsp-num-groups 5 --gsp-prompts-per-group 4 "
        "--gsp-system-prompt-len 48 --gsp-question-len 12 --gsp-output-len 4 "
        "--max-concurrency 1 --warmup-requests 0 --flush-cache --cache-report --output-details "
        "--disable-tqdm --seed 6"
    ).split(),
    "cases": {
        "shuffled": {"home": "first", "flags": []},
        "ordered": {"home": "second", "flags": ["--gsp-ordered"]},
        "ordered, in the home of shuffled": {"home": "first", "flags": ["--gsp-ordered"]},
    },
}

# Week 7: compositions of steps. A budget of 8 tokens shows every clamp in a few of them.

ROOMY = {"block_size": 4, "num_blocks": 100, "enable_caching": True}
# Each needs four blocks in the end, and seven can be had: the later one is preempted.
CRAMPED = {
    "block_size": 4,
    "num_blocks": 8,
    "enable_caching": False,
    "options": {"max_num_seqs": 4, "max_num_batched_tokens": 64},
    "requests": [[0, tokens(10, 8), 9], [0, tokens(50, 8), 9]],
}
SCHEDULER_STEPS = {
    "checkpoint": CHECKPOINT,
    "traces": [
        {
            **ROOMY,
            "options": {"max_num_seqs": 4, "max_num_batched_tokens": 8},
            "requests": [[0, tokens(10, 11), 3], [0, tokens(50, 7), 3]],
        },
        {
            # A place is taken again in the step after it is given up.
            **ROOMY,
            "options": {"max_num_seqs": 2, "max_num_batched_tokens": 64},
            "requests": [
                [0, tokens(10, 4), 2],
                [0, tokens(20, 4), 6],
                [0, tokens(30, 4), 3],
                [3, tokens(40, 4), 2],
            ],
        },
        CRAMPED,
        CRAMPED | {"enable_caching": True},  # what was freed is hit, and nothing computed again
    ],
}

# Week 8: a request that decodes while a prompt of 256 tokens arrives.

STALL = {
    "block_size": 16,
    "num_blocks": 100,
    "enable_caching": False,
    "requests": [[0, tokens(0, 8), 16], [1, tokens(100, 256), 2]],
}
CHUNK_SIZES = {
    "checkpoint": CHECKPOINT,
    "traces": [
        STALL | {"options": {"max_num_seqs": 4, "max_num_batched_tokens": 512}},
        STALL | {"options": {"max_num_seqs": 4, "max_num_batched_tokens": 33}},
        STALL
        | {
            "options": {
                "max_num_seqs": 4,
                "max_num_batched_tokens": 512,
                "long_prefill_token_threshold": 64,
            }
        },
        STALL  # alone, a prompt starves nobody, and vLLM leaves the threshold aside
        | {
            "requests": [[0, tokens(0, 100), 2]],
            "options": {
                "max_num_seqs": 4,
                "max_num_batched_tokens": 512,
                "long_prefill_token_threshold": 32,
            },
        },
    ],
}

# Week 9: what locality costs the request that came first.

POLICY_QUEUES = {
    "checkpoint": CHECKPOINT,
    "queues": [
        queue([FEW_SHOT], ALONE, *([*FEW_SHOT, i] for i in range(5))),
        {
            "cached": [[FEW_SHOT, ""]],
            "waiting": [
                {"token_ids": ALONE, "arrival_time": 0.0, "priority": 1},
                {"token_ids": [*FEW_SHOT, 1], "arrival_time": 1.0, "priority": 1},
                {"token_ids": [*FEW_SHOT, 2], "arrival_time": 2.0, "priority": 1, "salt": "tenant"},
                {"token_ids": tokens(5000, 20), "arrival_time": 3.0, "priority": 2},
                {"token_ids": tokens(4000, 50), "arrival_time": 4.0, "priority": 0},
            ],
        },
    ],
}

# Week 10: five decodes fit no graph for decodes when at most five requests run.

CUDA_GRAPHS = {
    "limits": [[5, 2048], [64, 2048], [256, 8192]],
    "cases": [
        {
            "mode": mode,
            "sizes": [1, 2, 4, 8],
            "max_num_seqs": 5,
            "steps": [[3, True], [5, True], [3, False], [8, False], [9, False]],
        }
        for mode in ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
    ],
}

# Week 11: the longest match wins, and of equally long ones the earliest.

NGRAM_DRAFTS = {
    "cases": [
        {
            "min_n": 1,
            "max_n": 3,
            "num_speculative_tokens": 4,
            "sequences": [
                [1, 2, 3, 4, 5, 1, 2, 3],
                [7, 2, 8, 8, 1, 2, 9, 9, 1, 2],  # the pair beats the earlier single token
                [5, 1, 8, 5, 2, 9, 5],  # two equally long matches
                [1, 2, 1],  # fewer follow than are asked for
                [1, 2, 3, 4],
            ],
        },
        {
            "min_n": 3,
            "max_n": 3,
            "num_speculative_tokens": 4,
            "sequences": [[1, 2, 3, 4, 5, 1, 2, 3], [7, 2, 8, 8, 1, 2, 9, 9, 1, 2]],
        },
    ]
}

# Week 15: what a key names, in chunks of four tokens.

PROMPT = tokens(10, 10)
CHUNK_KEYS = [
    {"chunk_size": 4, "token_ids": PROMPT},
    {"chunk_size": 4, "token_ids": [*PROMPT[:7], 99, *PROMPT[8:]]},  # the second chunk differs
    {"chunk_size": 4, "token_ids": [99, *PROMPT[1:]]},  # and with the first, so do all after it
    {"chunk_size": 8, "token_ids": PROMPT},
    {"chunk_size": 256, "token_ids": PROMPT},  # the default: nothing is stored
    {"chunk_size": 4, "token_ids": PROMPT, "num_workers": 2, "worker": 1},
]

QUESTIONS = {
    "week03/performance-model": ("vllm_performance_model", PERFORMANCE_MODEL),
    "week04/start-up": ("vllm_start_up", START_UP),
    "week04/block-pool": ("vllm_block_pool", BLOCK_POOL),
    "week05/prefix-hits": ("vllm_kv_cache_manager", PREFIX_HITS),
    "week05/savings": ("vllm_kv_cache_manager", PREFIX_SAVINGS),
    "week05/prefix-repetition": ("vllm_prefix_repetition", PREFIX_REPETITION),
    "week06/radix-tree": ("sglang_radix_cache", RADIX_TREE),
    "week06/queue-orders": ("sglang_schedule_policy", RADIX_QUEUES),
    "week06/unified-tree": ("sglang_unified_cache", {"operations": RADIX_TREE["operations"]}),
    "week06/starvation": ("sglang_starvation", STARVATION),
    "week06/program": ("sglang_program", PROGRAM),
    "week06/generated-prefixes": ("sglang_generated_prefixes", GENERATED_PREFIXES),
    "week07/scheduler-steps": ("vllm_scheduler", SCHEDULER_STEPS),
    "week08/chunk-sizes": ("vllm_scheduler", CHUNK_SIZES),
    "week09/queue-orders": ("sglang_schedule_policy", POLICY_QUEUES),
    "week10/cuda-graphs": ("vllm_cudagraph_dispatcher", CUDA_GRAPHS),
    "week11/ngram-drafts": ("vllm_ngram_proposer", NGRAM_DRAFTS),
    "week15/chunk-keys": ("lmcache_token_database", CHUNK_KEYS),
}

# Answers of a running server in which moments have a say: asked again, they may differ there.
TIMED = {"week06/program": ("branches_found", "commits", "cached_tokens")}

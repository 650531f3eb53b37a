"""A small shape, a step and plans of them, whose numbers can be had on paper."""

from transformers import LlamaConfig

from score_rl.planning.cluster import ClusterPlan, make_cluster_plan
from score_rl.planning.costs import Prompts, StageCost
from score_rl.planning.seconds import Assumptions
from score_rl.planning.shapes import Shape
from score_rl.planning.spread import Sizes
from score_rl.settings import load

PROMPTS = Prompts(20.0, 24, 5, "given")
CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64
REST = 2 * 96 * 64 + 64
ADAPTER = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160))
"""Of a layer with rank 4."""
SIZES = Sizes(layer=0, layer_trained=0, rest=12, rest_trained=0, multiplied=0, trained=0, width=0, layers=1)


def cost(**changed: int) -> StageCost:
    """A step of 6 rows of 10 tokens in 3 passes."""
    fields = {
        "label": "s",
        "steps": 1,
        "episodes": 6,
        "prompt_tokens": 0,
        "sampled_tokens": 0,
        "rollout_passes": 0,
        "rows": 6,
        "update_tokens": 60,
        "policy_passes": 3,
        "repeated_passes": 0,
        "scoring_passes": 0,
        "reference_passes": 0,
    }
    return StageCost(**(fields | changed))


def plan_of(processes: int, *changes: str, assumed: Assumptions | None = None) -> ClusterPlan:
    """The plan of the arithmetic recipe for the small shape."""
    settings = load("arithmetic", list(changes))
    return make_cluster_plan(settings, processes, shape=Shape(CONFIG, "table"), prompts=PROMPTS, assumed=assumed)

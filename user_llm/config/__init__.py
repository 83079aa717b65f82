"""An experiment as a value: what is read, what is built, how it is trained and how it is judged.

Every part is a frozen pydantic model that refuses unknown fields. A module gets its own part, never
the whole. `configs/*.py` write these values; the command line overrides their fields; `config.json`
carries them into every checkpoint.
"""

from user_llm.config.base import (
    Config,
    Dtype,
    EncoderKind,
    Fusion,
    Protocol,
    Remat,
    Retrieval,
    Strategy,
    Task,
)
from user_llm.config.data import (
    DIFFERENCE,
    EVENT_TIME,
    QUERY_TIME,
    TEXT_VECTOR,
    DataConfig,
    FeatureConfig,
    SourceConfig,
)
from user_llm.config.experiment import Experiment, FigureConfig, MeshConfig, Sweep, encoder_only
from user_llm.config.models import (
    PROJECTIONS,
    CrossAttentionConfig,
    DecoderConfig,
    EncoderConfig,
    LanguageModelConfig,
    LayerType,
    LoRAConfig,
    ModelType,
    RopeScaling,
    SystemConfig,
    TextEncoderConfig,
    named,
)
from user_llm.config.streams import DifferenceConfig, PeerConfig, PerceiverConfig, PersonaConfig
from user_llm.config.training import (
    EvaluationConfig,
    FinetuneConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    StageConfig,
    WarmupConfig,
)

__all__ = [
    "DIFFERENCE",
    "EVENT_TIME",
    "PROJECTIONS",
    "QUERY_TIME",
    "TEXT_VECTOR",
    "Config",
    "CrossAttentionConfig",
    "DataConfig",
    "DecoderConfig",
    "DifferenceConfig",
    "Dtype",
    "EncoderConfig",
    "EncoderKind",
    "EvaluationConfig",
    "Experiment",
    "FeatureConfig",
    "FigureConfig",
    "FinetuneConfig",
    "Fusion",
    "LanguageModelConfig",
    "LayerType",
    "LoRAConfig",
    "MeshConfig",
    "ModelType",
    "ObjectiveConfig",
    "OptimConfig",
    "PeerConfig",
    "PerceiverConfig",
    "PersonaConfig",
    "PretrainConfig",
    "Protocol",
    "Remat",
    "Retrieval",
    "RopeScaling",
    "SourceConfig",
    "StageConfig",
    "Strategy",
    "Sweep",
    "SystemConfig",
    "Task",
    "TextEncoderConfig",
    "WarmupConfig",
    "encoder_only",
    "named",
]

"""Training: settings, objectives, the loop. It knows tensors, not files of CT."""

from .checkpoints import find_checkpoint, list_checkpoints
from .classification import ClassificationObjective
from .config import TrainingConfig
from .distillation import TrajectoryDistillationObjective
from .loop import TrainingError, TrainingResult, Validation, train
from .lr_schedules import LR_SCHEDULES, make_lr_scheduler
from .objectives import Objective, PreparedObjective, ResidualDiffusionObjective
from .objectives_conditional import ConditionalResidualObjective
from .objectives_synthesis import SynthesisObjective

__all__ = [
    "LR_SCHEDULES",
    "ClassificationObjective",
    "ConditionalResidualObjective",
    "Objective",
    "PreparedObjective",
    "ResidualDiffusionObjective",
    "SynthesisObjective",
    "TrainingConfig",
    "TrainingError",
    "TrainingResult",
    "TrajectoryDistillationObjective",
    "Validation",
    "find_checkpoint",
    "list_checkpoints",
    "make_lr_scheduler",
    "train",
]

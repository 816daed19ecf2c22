"""Learning rates and momenta as functions of the position in a run, in epochs.

As the published code has them: that of MoCo v3 moves with every iteration, those of linear probes and of DeiT once an
epoch. ``base`` is always the rate that is used, already scaled by the size of the batch.
"""

import math


def moco_learning_rate(epoch: float, *, base: float, epochs: int, warmup_epochs: int) -> float:
    """Rise linearly from 0 to ``base`` during the warm-up, then fall to 0 along half a cosine.

    Args:
        epoch: Position in the run, such as 3.25.
        base: The highest rate.
        epochs: Epochs of the run.
        warmup_epochs: Epochs of the warm-up.

    Source: Chen, Xie, He (MoCo v3, arXiv 2104.02057), appendix A.
    """
    if epoch < warmup_epochs:
        return base * epoch / warmup_epochs
    return base * _half_cosine(epoch - warmup_epochs, epochs - warmup_epochs)


def moco_momentum(epoch: float, *, start: float, epochs: int) -> float:
    """Rise from ``start`` to 1 along half a cosine, whatever the warm-up.

    Args:
        epoch: Position in the run.
        start: Momentum at its start.
        epochs: Epochs of the run.

    Source: as for `moco_learning_rate`.
    """
    return 1.0 - _half_cosine(epoch, epochs) * (1.0 - start)


def probe_learning_rate(epoch: float, *, base: float, epochs: int, warmup_epochs: int = 0) -> float:
    """Fall from ``base`` along half a cosine that moves once an epoch, so that 0 is not reached.

    Args:
        epoch: Position in the run; only the epoch counts.
        base: The rate of the first epoch.
        epochs: Epochs of the run.
        warmup_epochs: Epochs in which what the cosine gives is multiplied by a factor that rises linearly from 0, with
            every iteration. The published protocol has none.
    """
    rise = min(1.0, epoch / warmup_epochs) if warmup_epochs else 1.0
    return base * rise * _half_cosine(math.floor(epoch), epochs)


def deit_learning_rate(
    epoch: float, *, base: float, epochs: int, warmup_epochs: int, warmup_lr: float, min_lr: float
) -> float:
    """Return DeiT's rate as the published scheduler gives it, which is a cosine with warm-up, one epoch late.

    The scheduler is told the number of an epoch when that epoch is over. So the first two epochs both run at
    ``warmup_lr``, and no epoch at ``min_lr``. The cosine runs over all epochs, those of the warm-up included.

    Args:
        epoch: Position in the run; only the epoch counts.
        base: The highest rate of the schedule.
        epochs: Epochs of the run.
        warmup_epochs: Epochs in which the rate rises linearly.
        warmup_lr: The rate that the warm-up starts from.
        min_lr: The rate that the cosine ends in.

    Source: Touvron et al. (DeiT, arXiv 2012.12877), Table 9, and its training script.
    """
    told = max(0, math.floor(epoch) - 1)
    if told < warmup_epochs:
        return warmup_lr + told * (base - warmup_lr) / warmup_epochs
    return min_lr + (base - min_lr) * _half_cosine(told, epochs)


def _half_cosine(position: float, length: float) -> float:
    """Fall from 1 at 0 to 0 at ``length``; beyond, and for no length at all, it is 0."""
    return 0.5 * (1.0 + math.cos(math.pi * position / length)) if position < length else 0.0

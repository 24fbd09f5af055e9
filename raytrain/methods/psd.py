r"""PSD, progressive self-distillation: Zeng, Niu and Taya 2025 (arXiv:2501.09608).

A batch is split into rows whose annotation may be used, A, and rows whose annotation is hidden, U.  A teaches by its
labels; U is taught by soft alignments, the teacher's probabilities over the rows of the other view.  The share r of A
shrinks as training proceeds.

    L       = l_lab + l_cross + lambda_dis l_dis
    l_lab   = mean_A (||u_a - y||_2 + ||u_v - y||_2)                                       losses.label
    l_cross = r hard + (1 - r) soft
    hard    = mean over (i, j, k) in A, y_j = y_i != y_k, of [m + d_ij - d_ik]_+           losses.triplet
    soft    = sum_{i in U, j, k} w_ij (1 - w_ik) [m + d_ij - d_ik]_+ / sum w_ij (1 - w_ik)   losses.soft_triplet
    w_ij    = P_ij / max_j P_ij,  P_ij = softmax_j(cos(zT_a_i, zT_v_j) / tau)              losses.alignment
    l_dis   = off-diagonal mean of the squared cross-correlation of z_a, z_v               losses.decorrelation
    r(t)    = r_end + (r_0 - r_end) (1 + cos pi t) / 2                                     annotated_share

Departs from the paper: the abstract and the scheme are the paper's; its equations were not available, so all of the
above is a reconstruction, and each choice in it is a setting.  Beyond them:
- hard, soft and their P are taken from audio to visual and from visual to audio, and the mean of both is trained.
- A is drawn over the rows of the world by (seed, step) alone: the same rows on every rank, for any number of ranks.
- Where annotation is really missing, such rows are always in U, and A are min(round(r n), annotated) of the others: a
  label that is there is hidden only to reach the share r, which missing ones count towards.  hard and soft are weighed
  by round(r n) / n either way, so that soft alignments of an untrained teacher weigh nothing.
- A row of U whose largest P is below gate / n is left out of soft: its teacher knows nothing of it yet.
- pair = "positive": w of a clip's own pair is 1, whatever the teacher says of it.
- r stays at 0.2 or above, or a teacher that learns from its own pupil confirms itself; a separate teacher, which learns
  from annotation alone, may go lower.
- mining = "hard": of each row of A the farthest positive and the nearest negative (batch-hard); of each row of U the
  farthest of the keys with w >= 1/2 and the nearest of the others, weighed by how sure the alignment is of both.
- Event sets in place of labels: two clips are of one class where they share an event, y is the multi-hot set, and
  cross-entropy takes all events of a clip alike.  A teacher's class probabilities are softmax(u / tau) either way.
- The teacher 'self' is the student of this very step, dropout included.  'separate' is a second pair of towers with
  l_lab and hard on A as its loss, added to L; the gradient's norm is clipped over both.
- metric = "info-nce" or "supcon" puts that softmax loss in place of both triplets, by labels in the hard part and by w
  in the soft one, where each query counts once (losses.soft_softmax).
- class_share = s: (1 - s) cos(z, z') + s cos(q, q') is evaluated, q the student's class probabilities; never trained.
- train.evaluate decides what is evaluated, as for every method: the student, or its average.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from raytrain.config import Model
from raytrain.data.reading import Annotation
from raytrain.methods.base import Method
from raytrain.methods.psd_settings import PsdSettings
from raytrain.methods.psd_student import PsdStudent
from raytrain.models.towers import Towers, ViewInput


class Psd(PsdStudent, Method):
    """The student and its teacher."""

    Settings = PsdSettings

    @classmethod
    def build(
        cls, settings: PsdSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> Psd:
        assert num_classes is not None, "check() has refused data without annotation"
        return cls(settings, views, model, num_classes)

    @classmethod
    def check(cls, settings: PsdSettings, annotation: Annotation) -> None:
        if annotation == "none":
            raise ValueError(
                "psd starts from annotated rows, but data.annotation is 'none'; use data with labels or event sets, "
                "some of which may be missing, or a method that needs none (hsc-mae)"
            )

    @torch.no_grad()
    def soft_labels(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """The teacher's class logits u by view; with l_lab = norm they estimate the one-hot label itself."""
        teacher = self._teaching
        training = teacher.training
        found: dict[str, Tensor] = teacher.eval()(views)[1]
        teacher.train(training)
        return found

    def teacher_state(self) -> Mapping[str, Tensor]:
        return self._teaching.state_dict()

    def load_teacher(self, state: Mapping[str, Tensor]) -> None:
        """It goes on to learn from there, as method.teacher says."""
        if self.teacher is None:
            raise ValueError(
                "method.teacher is 'self': the student has no other teacher; use 'ema' or 'separate'"
            )
        own = self.teacher.state_dict()
        for name in own.keys() | state.keys():
            mine, given = (tuple(of[name].shape) if name in of else None for of in (own, state))
            if mine != given:
                raise ValueError(
                    f"the teacher's {name} is {given or 'missing'}, this method's is {mine or 'missing'}; a teacher is "
                    "of the same views, [model] and classes"
                )
        self.teacher.load_state_dict(dict(state))

    @property
    def _teaching(self) -> Towers:
        return self.towers if self.teacher is None else self.teacher

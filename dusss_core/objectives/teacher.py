"""An objective with an EMA teacher, which stays at the site."""

from __future__ import annotations

from torch import Tensor

from dusss_core.files import with_prefix
from dusss_core.models.ema import Teacher
from dusss_core.models.weights import load_tensors
from dusss_core.objectives.objective import Host, Objective


class WithTeacher(Objective):
    """Keeps `teacher`, an average of the students; None where the method does without one."""

    teacher: Teacher | None

    def __init__(self, host: Host):
        super().__init__(host)
        self.teacher = Teacher(host.student)

    def start(self) -> None:
        """The teacher starts as a copy of the first student that the site sees."""
        if self.teacher is not None:
            self.teacher.become(self.host.student)

    def after_step(self, step: int, share_done: float) -> None:
        """Eq. 12."""
        if self.teacher is not None:
            self.teacher.follow(self.host.student, step, self.settings.ema)

    def state(self) -> dict[str, Tensor]:
        if self.teacher is None:
            return {}
        return {f"teacher.{name}": value for name, value in self.teacher.model.state_dict().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        if self.teacher is not None:
            load_tensors(self.teacher.model, with_prefix(tensors, "teacher."))

"""Broken in merges."""

from broken import BrokenModel


class FirstCountsTwice(BrokenModel):
    def merge(self, *others):
        twin = self.new()
        twin.restore(self.state())
        super().merge(twin, *others)


class EmptiesTheOthers(BrokenModel):
    def merge(self, *others):
        super().merge(*others)
        for other in others:
            other.restore(self.new().state())


CATCHES = {
    FirstCountsTwice: ["check_merge_does_not_depend_on_the_order"],
    EmptiesTheOthers: ["check_merge_leaves_the_others"],
}

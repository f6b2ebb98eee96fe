"""The arguments of a forward pass, by name, whether they were given by position or not."""

from __future__ import annotations

import inspect


def names_of(model):
    """The names of the arguments of `model.forward`, in order. No compiler can trace this: `enable` calls it."""
    # Of the class: offloading replaces the method of the instance by one of any arguments.
    return list(inspect.signature(type(model).forward).parameters)[1:]


class Arguments:
    """Reads and replaces the arguments, of these names, of a forward pass; `args` and `kwargs` are what a hook returns."""

    def __init__(self, names, args, kwargs):
        self.args, self.kwargs = args, kwargs
        self._names = names

    def __getitem__(self, name):
        """The argument; `None` where it was not given."""
        place = self._place(name)
        return self.args[place] if place is not None else self.kwargs.get(name)

    def __setitem__(self, name, value):
        place = self._place(name)
        if place is None:
            self.kwargs = {**self.kwargs, name: value}
        else:
            self.args = (*self.args[:place], value, *self.args[place + 1 :])

    def _place(self, name):
        place = self._names.index(name) if name in self._names else len(self.args)
        return place if place < len(self.args) else None

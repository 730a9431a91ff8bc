"""What of a scene is known before any data arrives: which geoms are drawn, and as which surfaces.

The visible geoms are grouped by kind, so that one vectorised computation prepares all of a kind.
A geom's *surfaces* are the smooth pieces of its boundary. Curved ones are numbered first (they are
shaded pixel by pixel), then the flat ones (one colour each); 0 is the background.
"""

import dataclasses
import functools

import mujoco

from lrm_jax.run.errors import UserError
from lrm_jax.run.quiet_mjx import mjx

_GEOM = mujoco.mjtGeom
_KINDS = {  # MuJoCo's type, then how many curved and how many (visible) flat surfaces a geom has
    "ellipsoid": (_GEOM.mjGEOM_ELLIPSOID, 1, 0),
    "sphere": (_GEOM.mjGEOM_SPHERE, 1, 0),
    "capsule": (_GEOM.mjGEOM_CAPSULE, 1, 0),
    "cylinder": (_GEOM.mjGEOM_CYLINDER, 1, 1),
    "plane": (_GEOM.mjGEOM_PLANE, 0, 1),
    "box": (_GEOM.mjGEOM_BOX, 0, 3),  # one for each axis: a camera never sees opposite faces
}
DRAWN_GROUPS = (0, 1, 2)  # what mujoco.MjvOption() shows


@dataclasses.dataclass(frozen=True)
class Kind:
    """The visible geoms of one kind.

    Attributes:
      name: ellipsoid, sphere, capsule, cylinder, plane or box.
      geoms: geom ids, ascending.
      surfaces: the surface numbers of each geom, the curved one before the flat ones.
    """

    name: str
    geoms: tuple[int, ...]
    surfaces: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    """The visible geoms of a model.

    Attributes:
      kinds: visible geoms by kind; kinds without any are left out.
      owners: geom id of each surface; -1 for surface 0, the background.
      curved: surfaces 1 .. curved are curved, those from curved + 1 on are flat.
    """

    kinds: tuple[Kind, ...]
    owners: tuple[int, ...]
    curved: int

    @property
    def id_bits(self) -> int:
        """How many bits a surface number takes."""
        return max(1, (len(self.owners) - 1).bit_length())


def scene_of(model: mjx.Model) -> Scene:
    """The static description of `model`.

    Raises:
      UserError: a visible geom is of a kind that cannot be drawn (mesh, height field, SDF).
    """
    return _scene(tuple(int(t) for t in model.geom_type), tuple(int(g) for g in model.geom_group))


@functools.lru_cache(maxsize=64)
def _scene(types: tuple[int, ...], groups: tuple[int, ...]) -> Scene:
    # Like MuJoCo's, groups outside of 0..5 count as the nearest of these.
    visible = [i for i, group in enumerate(groups) if min(max(group, 0), 5) in DRAWN_GROUPS]
    known = {int(row[0]) for row in _KINDS.values()}
    for i in visible:
        if types[i] not in known:
            raise UserError(
                f"geom {i} is of type {_GEOM(types[i]).name}, which the renderer cannot draw: "
                "use primitive geoms, or move it to geom group 3 to hide it"
            )
    members = {
        name: [i for i in visible if types[i] == int(row[0])] for name, row in _KINDS.items()
    }
    numbers: dict[int, list[int]] = {i: [] for i in visible}
    owners = [-1]
    curved = 0
    for column in (1, 2):
        for name, geoms in members.items():
            for i in geoms:
                for _ in range(_KINDS[name][column]):
                    numbers[i].append(len(owners))
                    owners.append(i)
        if column == 1:
            curved = len(owners) - 1
    kinds = tuple(
        Kind(name, tuple(geoms), tuple(tuple(numbers[i]) for i in geoms))
        for name, geoms in members.items()
        if geoms
    )
    return Scene(kinds, tuple(owners), curved)

"""MJCF that the tasks share: the world around a task's bodies, its blocks, its contacts."""

from lrm_jax.envs import panda

HIDDEN = 'contype="0" conaffinity="0" group="1"'  # drawn; touches only what a pair names
PADS = ("left_pad", "right_pad")
ON_TABLE = "1 1 0.005 0.0001 0.0001"
# With 0.99 five iterations do not converge, and cubes are squeezed out.
FIRM = "0.95 0.97 0.001"
GRIPPED = "1 1 0.01 0.0001 0.0001"
BETWEEN = "0.6 0.6 0.005 0.0001 0.0001"


def world(
    name: str,
    timestep: float,
    bodies: str,
    contacts: list[tuple[str, str, str]],
    grip: str = "0.9 0.95 0.001",
) -> str:
    """MJCF of table, arm, light, camera ``front``, a task's bodies and its contact pairs.

    contacts: (geom, geom, friction). MJX computes every pair in every step, so a task names few.
    grip: solimp of the pads' pairs. Soft ones, PutOnPlate's, let what is held creep by millimetres.

    MJX solves under vmap in a loop whose end is computed twice a turn: to go on, and to keep what
    is done. Where XLA rounds a gradient's norm differently in the two and `tolerance` lies between,
    nothing is done and the loop goes on for ever. At 1e-30 no norm comes near; the other way to
    end, a cost that no longer falls, is the sign of a difference of two numbers in memory.
    """
    pairs = "\n".join(
        f'<pair geom1="{a}" geom2="{b}" condim="3" friction="{f}" solref="0.02 1" '
        f'solimp="{grip if a in PADS else "0.9 0.95 0.001"}"/>'
        for a, b, f in contacts
    )
    return f"""
<mujoco model="{name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" solver="Newton" cone="pyramidal"
          iterations="5" ls_iterations="6" tolerance="1e-30" impratio="1">
    <flag eulerdamp="disable"/>
  </option>
  <visual><global offwidth="640" offheight="640"/></visual>
  <default>{panda.defaults_mjcf()}</default>
  <worldbody>
    <light directional="true" pos="0.6 0.4 1.5" dir="-0.2 -0.3 -1" diffuse="0.6 0.6 0.6"/>
    <camera name="front" pos="1.02 0 0.62" xyaxes="0 1 0 -0.72 0 0.694" fovy="39"/>
    <geom name="table" type="plane" size="0.8 0.8 0.05" pos="0.4 0 0" rgba="0.55 0.52 0.48 1"
          contype="0" conaffinity="0" group="1"/>
    {panda.arm_mjcf()}{bodies}
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{panda.actuators_mjcf()}</actuator>
</mujoco>"""


def block(name: str, half: tuple[float, float, float], y: float = 0.0, mass: float = 0.1) -> str:
    """MJCF of a box on a free joint; body, joint and geom have the same name.

    y: its place before reset, which decides `stat.extent` and so the renderer's clip planes.
    """
    size = " ".join(str(v) for v in half)
    return f"""
    <body name="{name}" pos="0.5 {y} {half[2]}">
      <freejoint name="{name}"/>
      <geom name="{name}" type="box" size="{size}" mass="{mass}" {HIDDEN}/>
    </body>"""

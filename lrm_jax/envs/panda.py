"""Franka Panda: published kinematics, and an MJCF arm of primitive geoms built from them.

Source of the numbers: Franka Emika, "Robot and interface specifications" (Denavit-Hartenberg
parameters in Craig's modified convention, joint limits, velocity-independent). Masses are round
figures: joints are position-controlled with gravity compensation, so only their order matters.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Modified (Craig) DH rows for joints 1..7: a_{i-1} [m], d_i [m], alpha_{i-1} [rad].
DH = np.array(
    [
        [0.0, 0.333, 0.0],
        [0.0, 0.0, -np.pi / 2],
        [0.0, 0.316, np.pi / 2],
        [0.0825, 0.0, np.pi / 2],
        [-0.0825, 0.384, -np.pi / 2],
        [0.0, 0.0, np.pi / 2],
        [0.088, 0.0, np.pi / 2],
    ]
)
FLANGE = 0.107  # joint 7 to flange along z [m]
HAND_YAW = -np.pi / 4  # the hand is mounted turned by -45 degrees about the flange's z
TCP = 0.1034  # flange to the point between the finger pads along z [m]
JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
READY = np.array([0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4])
FINGER_MAX = 0.04  # travel of one finger [m]


def _link(alpha: float, a: float, d: float, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotation [3,3] and translation [3] of RotX(alpha) TransX(a) RotZ(theta) TransZ(d)."""
    ca, sa = float(np.cos(alpha)), float(np.sin(alpha))
    c, s = jnp.cos(theta), jnp.sin(theta)
    zero = jnp.zeros_like(c)
    rot = jnp.stack(
        [
            jnp.stack([c, -s, zero], -1),
            jnp.stack([s * ca, c * ca, zero - sa], -1),
            jnp.stack([s * sa, c * sa, zero + ca], -1),
        ],
        -2,
    )
    return rot, jnp.array([a, -sa * d, ca * d], dtype=rot.dtype)


def forward_kinematics(q: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pose and geometric Jacobian of the tool centre point in the base frame.

    Args:
      q: float [7], joint angles [rad].
    Returns:
      position [3] in metres, rotation [3,3], Jacobian [6,7] (linear rows, then angular).
    """
    rot, pos = jnp.eye(3, dtype=q.dtype), jnp.zeros(3, dtype=q.dtype)
    axes, origins = [], []
    for i, (a, d, alpha) in enumerate(DH):
        step_rot, step_pos = _link(alpha, a, d, q[i])
        pos = pos + rot @ step_pos
        rot = rot @ step_rot
        axes.append(rot[:, 2])
        origins.append(pos)
    pos = pos + rot[:, 2] * (FLANGE + TCP)
    yaw = jnp.array(
        [
            [np.cos(HAND_YAW), -np.sin(HAND_YAW), 0],
            [np.sin(HAND_YAW), np.cos(HAND_YAW), 0],
            [0, 0, 1],
        ],
        dtype=q.dtype,
    )
    rot = rot @ yaw
    axes, origins = jnp.stack(axes), jnp.stack(origins)
    jacobian = jnp.concatenate([jnp.cross(axes, pos - origins), axes], axis=1).T
    return pos, rot, jacobian


# Geoms drawn on each link, in the link's DH frame. They have no contacts: only the finger pads do.
_LINK_GEOMS = {
    1: '<geom class="link" type="capsule" fromto="0 0 -0.19 0 0 0" size="0.06"/>',
    2: '<geom class="link" type="capsule" fromto="0 0 0 0 -0.20 0" size="0.055"/>',
    3: '<geom class="link" type="capsule" fromto="0 0 -0.08 0.0825 0 0" size="0.055"/>',
    4: '<geom class="link" type="capsule" fromto="0 0 0 -0.0825 0.12 0" size="0.05"/>',
    5: '<geom class="link" type="capsule" fromto="0 0 -0.26 0 0 -0.03" size="0.05"/>',
    6: '<geom class="link" type="capsule" fromto="0 0 0 0.088 0 0" size="0.047"/>',
    7: '<geom class="joint" type="cylinder" pos="0 0 0.05" size="0.042 0.05"/>',
}
_LINK_MASS = {1: 3.0, 2: 3.0, 3: 3.0, 4: 2.5, 5: 2.5, 6: 1.5, 7: 0.5}


def _finger(side: int) -> str:
    """One finger: a visible bar and a horizontal capsule pad, the only part that touches things."""
    name = "left" if side > 0 else "right"
    # The pad is a capsule along the hand's x: MJX has cheap capsule-box contacts (two points),
    # and two opposite lines of contact hold a cube against rotation about every axis.
    return f"""
      <body name="{name}_finger" pos="0 0 0.0584" gravcomp="1">
        <joint name="{name}_finger" type="slide" axis="0 {side} 0" damping="25" armature="0.1"/>
        <inertial mass="0.1" pos="0 0 0.02" diaginertia="3e-5 3e-5 3e-5"/>
        <geom class="finger" type="box" pos="0 {side * 0.009} 0.018" size="0.009 0.008 0.022"/>
        <geom name="{name}_pad" class="pad" type="capsule"
              fromto="-0.012 {side * 0.009} 0.045 0.012 {side * 0.009} 0.045" size="0.009"/>
      </body>"""


def arm_mjcf() -> str:
    """MJCF of the arm with its gripper: bodies link1..link7, hand, two fingers; site ``tcp``."""
    yaw = HAND_YAW / 2
    inner = f"""
      <body name="hand" pos="0 0 {FLANGE}" quat="{np.cos(yaw)} 0 0 {np.sin(yaw)}" gravcomp="1">
        <inertial mass="0.7" pos="0 0 0.03" diaginertia="0.002 0.002 0.001"/>
        <geom class="hand" type="box" pos="0 0 0.035" size="0.022 0.1 0.03"/>
        <site name="tcp" pos="0 0 {TCP}" size="0.005" group="4"/>
        {_finger(1)}{_finger(-1)}
      </body>"""
    for i in range(7, 0, -1):
        a, d, alpha = DH[i - 1]
        pos = f"{a} {-np.sin(alpha) * d} {np.cos(alpha) * d}"
        quat = f"{np.cos(alpha / 2)} {np.sin(alpha / 2)} 0 0"
        mass = _LINK_MASS[i]
        inner = f"""
      <body name="link{i}" pos="{pos}" quat="{quat}" gravcomp="1">
        <joint name="joint{i}" type="hinge" axis="0 0 1" armature="0.2" damping="2"/>
        <inertial mass="{mass}" pos="0 0 0" diaginertia="{mass / 50} {mass / 50} {mass / 50}"/>
        {_LINK_GEOMS[i]}
        {inner}
      </body>"""
    return f"""
    <body name="base" pos="0 0 0">
      <geom class="link" type="cylinder" pos="0 0 0.07" size="0.08 0.07"/>
      {inner}
    </body>"""


def defaults_mjcf() -> str:
    """MJCF default classes of the arm's geoms: drawn (group 2), without contacts."""
    plain = 'contype="0" conaffinity="0" group="2"'
    return f"""
    <default class="link"><geom {plain} rgba="0.92 0.92 0.94 1"/></default>
    <default class="joint"><geom {plain} rgba="0.35 0.37 0.42 1"/></default>
    <default class="hand"><geom {plain} rgba="0.80 0.80 0.83 1"/></default>
    <default class="finger"><geom {plain} rgba="0.25 0.26 0.30 1"/></default>
    <default class="pad"><geom {plain} rgba="0.10 0.10 0.12 1"/></default>"""


def actuators_mjcf() -> str:
    """Position servos: seven joints, then the two fingers (force limited as the real gripper)."""
    gains = [3000, 3000, 3000, 3000, 1500, 1500, 1500]
    rows = [
        f'<position name="joint{i + 1}" joint="joint{i + 1}" kp="{kp}" dampratio="1"/>'
        for i, kp in enumerate(gains)
    ]
    rows += [
        f'<position name="{side}_finger" joint="{side}_finger" kp="400" forcerange="-8 8"/>'
        for side in ("left", "right")
    ]
    return "\n".join(rows)

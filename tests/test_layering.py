"""Rooms are stacked: an import only goes down."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mmvit"
#: from the bottom; a room may import what stands before it, and itself
FLOORS = [
    {"errors"},
    {"ops"},
    {"registry"},
    {"losses", "weights"},
    {"matching"},
    {"data"},
    {"layers", "evaluation"},
    {"backbones", "necks", "heads"},
    {"architectures"},
    {"engine"},
    {"inference"},
    {"check_golden", "doctor", "leaderboard"},
    {"benchmark"},
    {"cli"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path):
    """Rooms of mmvit that a file imports, at its top or inside functions, relative imports included."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ("mmvit", *package)[: len(package) + 2 - node.level]
            names = [".".join((*base, node.module or ""))]
        elif isinstance(node, ast.ImportFrom):
            names = [f"mmvit.{alias.name}" for alias in node.names] if node.module == "mmvit" else [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "mmvit" and len(parts) > 1 and parts[1] in FLOOR:
                yield parts[1]


def test_every_room_has_a_floor():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))} | {p.stem for p in PACKAGE.glob("*.py")}
    assert rooms - {"__init__"} == set(FLOOR)


def test_imports_go_down():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imported_rooms(path)
            if other != room and FLOOR[other] >= FLOOR[room]
        ]
    assert not wrong, wrong

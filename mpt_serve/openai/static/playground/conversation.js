// A conversation as a tree of turns: an edit or another response is a branch beside the one that there was.

/** One turn. role: `user`, `assistant` or `tool`; calls, callId: of tools; generation: where it comes from, or null. */
export class Turn {
  constructor(parent, role, text, more = {}) {
    this.parent = parent;
    this.role = role;
    this.text = text;
    this.calls = more.calls ?? [];
    this.callId = more.callId ?? null;
    this.generation = more.generation ?? null;
    this.children = [];
    this.selected = 0; // the child that the shown conversation goes on with
  }

  /** The turns that are alternatives of each other, this one among them. */
  get siblings() {
    return this.parent.children;
  }

  get place() {
    return this.siblings.indexOf(this);
  }

  /** The name of the function whose call a tool's turn has the result of. */
  get callName() {
    for (let above = this.parent; above; above = above.parent) {
      const call = above.calls.find(({ id }) => id === this.callId);
      if (call) return call.name;
    }
    return "a call";
  }
}

/** The tree, and the one path through it that is shown. */
export class Conversation {
  constructor() {
    this.clear();
  }

  clear() {
    this.root = new Turn(null, "root", "");
  }

  /** The shown turns, oldest first. */
  get path() {
    const turns = [];
    for (let turn = this.root.children[this.root.selected]; turn; turn = turn.children[turn.selected]) turns.push(turn);
    return turns;
  }

  get last() {
    return this.path.at(-1) ?? this.root;
  }

  /** The turns before one, oldest first. */
  before(turn) {
    const turns = [];
    for (let above = turn.parent; above !== this.root; above = above.parent) turns.unshift(above);
    return turns;
  }

  /** Add a turn below another one, and show it. */
  add(parent, role, text, more) {
    const turn = new Turn(parent, role, text, more);
    parent.children.push(turn);
    parent.selected = parent.children.length - 1;
    return turn;
  }

  /** Add an alternative of a turn with another text, and show it. */
  edit(turn, text) {
    return this.add(turn.parent, turn.role, text, { callId: turn.callId });
  }

  /** Show the alternative at a place among the siblings. */
  select(turn, place) {
    turn.parent.selected = Math.min(Math.max(place, 0), turn.siblings.length - 1);
  }

  /** Return the tree as plain data, without tokens and speeds. */
  save() {
    const plain = ({ role, text, calls, callId, children, selected }) => ({
      role, text, calls, callId, selected, children: children.map(plain),
    });
    return plain(this.root);
  }

  /** Take the tree from what `save` has returned. */
  load(saved) {
    const restore = (parent, { role, text, calls, callId, selected, children }) => {
      const turn = new Turn(parent, role, text, { calls, callId });
      turn.children = children.map((child) => restore(turn, child));
      turn.selected = selected;
      return turn;
    };
    this.root = restore(null, saved);
  }
}

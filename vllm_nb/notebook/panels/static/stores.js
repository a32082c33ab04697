// What panels send apart from their state, kept up to date by messages, for all views of a panel.

const stores = new Map(); // panel's id -> its store: one a model, whatever the number of its views

/** The store of a model, fed with its messages of that type. make(ask) begins it; `ask` is for when some were missed. */
export function storeOf(model, type, make) {
  const id = model.get("panel_id");
  if (!stores.has(id)) {
    const store = make(() => model.send({ type }));
    model.on("msg:custom", (content, buffers) => content.type === type && store.take(content, buffers));
    stores.set(id, store);
  }
  return stores.get(id);
}

/** Callbacks, and the way to call them all. */
export function listeners() {
  const known = new Set();
  return {
    listen(callback) {
      known.add(callback);
      return () => known.delete(callback);
    },
    tell(news) {
      for (const callback of known) callback(news);
    },
  };
}

/** Rows of which only the last ones change. `listen` is called with the number of those that have stayed. */
export function rowStore(initial, ask) {
  const { listen, tell } = listeners();
  const store = {
    rows: initial.rows,
    frame: initial.frame,
    listen,
    take({ frame, previous, keep, rows }) {
      if (previous > store.frame && keep > 0) return ask();
      store.rows = [...store.rows.slice(0, keep), ...rows];
      store.frame = frame;
      tell(keep);
    },
  };
  return store;
}

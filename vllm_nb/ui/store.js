// Conversations in this browser, in IndexedDB: pictures are too large for localStorage.

const NAME = "vllm_nb";
const TABLE = "conversations";

export class Store {
  #database = null;

  // All of them without their turns, the last used first.
  async list() {
    const records = await this.#run("readonly", (table) => table.getAll());
    return records.map(({ id, title, updated }) => ({ id, title, updated })).sort((a, b) => b.updated - a.updated);
  }

  // What was put; undefined for an unknown id.
  get(id) {
    return this.#run("readonly", (table) => table.get(id));
  }

  // record: {id, title, updated, data}
  put(record) {
    return this.#run("readwrite", (table) => table.put(record));
  }

  remove(id) {
    return this.#run("readwrite", (table) => table.delete(id));
  }

  async #run(mode, act) {
    this.#database ??= open();
    const database = await this.#database;
    return settled(act(database.transaction(TABLE, mode).objectStore(TABLE)));
  }
}

function open() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
  return settled(request);
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Whether the kernel of a widget is still the one that made it: a page is not told where it is not.

/**
 * Calls back with whether the kernel still knows the model: now, and whenever that may have changed. `element` is what
 * the reader sees of it. Returns the way to end it.
 */
export function watchKernel(model, element, callback) {
  const look = async () => callback(await isAlive(model));
  model.on("comm_live_update", look);
  const stopListening = watchSession(model.widget_manager.kernel, () => callback(false)); // undefined elsewhere
  const stopAwaiting = awaitReader(element, look);
  look(); // what a notebook was saved with has no kernel
  return () => {
    model.off("comm_live_update", look);
    stopListening();
    stopAwaiting();
  };
}

/** Calls back when JupyterLab's kernel speaks in another session: it is another process, which a page is not told that
 * has not restarted it. What it says first may be lost, the end of an answer too: so no question is needed. */
function watchSession(kernel, callback) {
  let session = null;
  const heard = (_, { msg, direction }) => {
    if (direction !== "recv" || msg.header.session === session) return;
    if (session !== null) callback();
    session = msg.header.session;
  };
  kernel?.anyMessage?.connect(heard);
  return () => kernel?.anyMessage?.disconnect(heard);
}

/** Calls back when a reader comes to the element, or back to the page. A kernel that has nothing to do says nothing of
 * its own, a new one neither; and asking it regularly would keep it from ever counting as idle. */
function awaitReader(element, callback) {
  element.addEventListener("pointerenter", callback);
  element.addEventListener("focusin", callback);
  window.addEventListener("focus", callback);
  return () => window.removeEventListener("focus", callback); // the others go with the element
}

/** Whether the kernel still knows the model: after a restart it does not. */
export async function isAlive(model) {
  const [manager, id] = [model.widget_manager, model.get("panel_id")];
  try {
    if ((await manager.get_model(id)).comm_live === false) return false;
    return !manager._get_comm_info || id in (await manager._get_comm_info());
  } catch {
    return false;
  }
}

// libp2p 3 uses it; Node has it from version 22.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { [resolve, reject] = [yes, no] })
  return { promise, resolve, reject }
}

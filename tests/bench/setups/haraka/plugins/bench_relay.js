// Every recipient is accepted, so that the MTA decides; 906 is OK: the name is known, none is looked up.
exports.hook_lookup_rdns = (next) => next(906, 'client.example')
exports.hook_connect = (next, connection) => { connection.relaying = true; next() }

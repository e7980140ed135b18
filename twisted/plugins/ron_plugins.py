"""The daemons twistd knows once RustyOnions is installed."""

from twisted.application.service import ServiceMaker

ron_node = ServiceMaker(
    "RustyOnions node", "ron.nodes.node", "A node: map, mailbox and onions, in one process or several.", "ron-node"
)
ron_oniond = ServiceMaker(
    "RustyOnions onion runtime", "ron.nodes.oniond", "Onion services for apps on a private Tor network.", "ron-oniond"
)
ron_balance = ServiceMaker(
    "RustyOnions balance node", "ron.nodes.balance", "One node of a cluster behind one onion address.", "ron-balance"
)
ron_kms = ServiceMaker(
    "RustyOnions key service", "ron.nodes.kms", "Custody of keys, hybrid signatures, an audit log.", "ron-kms"
)
ron_kms_worker = ServiceMaker(
    "RustyOnions key worker", "ron.nodes.kmsworker", "One worker of a key service; ron-kms starts it.", "ron-kms-worker"
)
ron_tornet = ServiceMaker(
    "RustyOnions private Tor network", "ron.nodes.tornet", "A private Tor network on loopback.", "ron-tornet"
)
ron_service = ServiceMaker(
    "RustyOnions service process", "ron.nodes.process", "One service of a Macronode; ron-node starts it.", "ron-service"
)

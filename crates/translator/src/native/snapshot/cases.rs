//! What is translated: the bytes of guest code, in hexadecimal.

/// One of each kind of instruction that is translated in line, in each form of its operands that matters, and some
/// that are executed outside.
pub(super) const INSTRUCTIONS: &str = "
4889c8 89c8 6689c8 88c8 88e0 4c89e8 4d89fe 488b01 8b449108 668b01 8a01 4f8b2cfe 64488b4108 65488b0411
65488b042528000000 488b0500010000 67488b442408 488901 8901 668901 8801 4c896c2408 48c70105000000
48c7c005000000 48b8f0debc9a78563412 0fb601 0fb6c1 480fbf01 4863c1 0f38f001 480fc301 488d445105
488d0500010000 448d6901 668d01 4801c8 480301 480101 4d01f5 4811c8 1901 4883ec18 83e00f 0801 31c0 483b01
803900 84c0 f70110000000 48ffc0 ff09 48f7d8 48f711 f0830101 f0480fb111 f00fc101 0fb111 f0480fc709 488701 4892
480fc1d0 48c1e003 d3e8 48d139 66c1c008 48d1d8 480fa4d005 480fadd0 480fafc1 6b010a 48f7e9 48f7e1 f721
48f7f1 f731 f7f9 49f7fd 4899 99 4898 480fbcc1 480fbd01 f3480fbcc1 f3480fbdc1 f3480fb801 480fc8
480fbae005 0fba2903 480fa301 c4e2f0f2c2 c4e2f8f3c9 c4e2e8f5c1 c4e2e9f7c1 c4e3fbf0c105 c4e2ebf6c1
c4e2f3f5c2 f20f38f001 480f45c1 0f4c01 0f94c0 0f9201 9f 9e f8 f5 0faef0 0faee8 90 f30f1efa f390 0f1809
50 4155 54 6a05 ff31 58 415e 5c 8f01 c9 c8100000 eb40 e9fb3f0000 7540 74f6 e800010000 e800400000 c3
c21000 ffe0 ff24c1 ffd0 ff1500010000 0f1001 0f28ca 0f2919 f30f6f4110 660f6ec0 66480f7ec8 66490f6ec5
f30f1001 f20f1101 0f5801 f20f58c1 f20f594108 f30f5ec1 f20f51c1 f2480f2ac0 f2480f2cc0 660f2ec1 660fefc0
660ffec1 660f7401 660fd7c0 660f70c11b 660f380001 660f38dcc1 660f3a44c101 c5fe6f01 c5fe7f01 c5f5fec2
c5f9efc0 c4e2f5b801 c5f877 c4e27d17c0 0f6f01 0ffcc1 0f77 dd01 db39 d8c1 dc09 d9c9 dbf1 db01 df39 d929
0fae01 0fae11 f3a4 f348ab a4 0f05 0f31 0fa2 fa fb 9c 9d 0f01f8 f3480faec0 8cd0 498ce5 ec f4
";

/// What they are for, and blocks in which instructions depend on each other.
pub(super) const BLOCKS: &[(&str, &str)] = &[
    (
        "Flags put aside for an access, and dead ones forgotten",
        "4801d0488b194883d6004801d1488b3e4839d07510",
    ),
    ("A loop to its own start", "488b04ca4801c348ffc975f4"),
    (
        "A group of vector accesses at one address, and one that may be elsewhere",
        "0f10010f1049100f58c10f1141200f1102c3",
    ),
    (
        "Vector registers live over an instruction that is executed outside",
        "f30f10010fa2f30f58c1f30f1101eb10",
    ),
    ("A prologue, a call", "554889e54156534883ec10e800010000"),
    ("An epilogue", "4883c4105b415e5dc3"),
    ("Registers that are in memory", "4d89ee4f8d3c2e4d013e4c896c240841ffe7"),
    ("x87 beside SSE", "dd01f30f58c1d8c9dd1ac3"),
];

-- Files and batches at an upstream, where one account of the gateway's operator holds those of all
-- accounts here: whose each is.
CREATE TABLE upstream_objects (
    upstream   text NOT NULL,
    id         text COLLATE "C" NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('file', 'batch')),
    account    text NOT NULL,
    -- In the order in which they became known.
    number     bigint GENERATED ALWAYS AS IDENTITY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The object as the upstream told it last, JSON; null where only its id is known.
    object     bytea,
    -- Of a file.
    purpose    text,
    PRIMARY KEY (upstream, kind, id)
);

CREATE INDEX upstream_objects_by_account ON upstream_objects (account, upstream, kind, number);

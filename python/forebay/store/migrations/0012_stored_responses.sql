-- Responses (/v1/responses) that clients may come back to.
CREATE TABLE stored_responses (
    id                   text COLLATE "C" PRIMARY KEY,
    -- What the contents are bound to where they are encrypted.
    row_id               uuid NOT NULL,
    account              text NOT NULL,
    key_id               text NOT NULL,
    model                text NOT NULL,
    previous_response_id text,
    created_at           timestamptz NOT NULL,
    expires_at           timestamptz NOT NULL,
    -- The key that opens response and items, each 12 bytes of nonce, AES-256-GCM's ciphertext, and
    -- its tag of 16; bound to row_id and 3 for the response, 4 for the items. Null: both are as they
    -- were.
    enc_key              text,
    -- JSON: the object as its client got it, and everything that the model was given.
    response             bytea NOT NULL,
    items                bytea NOT NULL
);

CREATE INDEX stored_responses_by_expiry ON stored_responses (expires_at);

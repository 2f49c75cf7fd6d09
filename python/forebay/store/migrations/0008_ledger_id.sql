-- Which ledger this is: spools belong to one, whatever its address.
CREATE TABLE ledger (
    -- One row.
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id       uuid NOT NULL DEFAULT gen_random_uuid()
);

INSERT INTO ledger DEFAULT VALUES;

//! Writes that may be repeated, and one that may not. Use them if there is no key, or no place to
//! store it.
//!
//! Each write runs once and then again, as a retry would. The example reads the table after each
//! run.

use comfy_table::{ContentArrangement, Table, presets};
use sqlx::PgPool;

use crate::Result;

struct Pattern {
    name: &'static str,
    write: &'static str,
    look: &'static str,
    /// The conditions for its use.
    wants: &'static str,
}

const PATTERNS: &[Pattern] = &[
    Pattern {
        name: "increment",
        write: "UPDATE stock SET pieces = pieces - 1 WHERE item = 'tea'",
        look: "SELECT 'pieces = ' || pieces FROM stock WHERE item = 'tea'",
        wants: "never repeat it: use a key",
    },
    Pattern {
        name: "set instead of increment",
        write: "UPDATE stock SET pieces = 9 WHERE item = 'coffee'",
        look: "SELECT 'pieces = ' || pieces FROM stock WHERE item = 'coffee'",
        wants: "the caller knows the result, and nobody else writes meanwhile (If-Match, a version column)",
    },
    Pattern {
        name: "upsert",
        write: "INSERT INTO addresses VALUES ('alice', 'Main St 1')
                ON CONFLICT (customer) DO UPDATE SET street = excluded.street",
        look: "SELECT count(*) || ' row, ' || min(street) FROM addresses WHERE customer = 'alice'",
        wants: "a natural key, and the last writer may win",
    },
    Pattern {
        name: "insert if absent",
        write: "INSERT INTO payments (id, amount) VALUES ('pay_1', 100) ON CONFLICT (id) DO NOTHING",
        look: "SELECT count(*) || ' row' FROM payments WHERE id = 'pay_1'",
        wants: "the caller makes one id per operation, which is an idempotency key",
    },
    Pattern {
        name: "check before doing",
        write: "WITH placed AS (
                    UPDATE orders SET state = 'shipped' WHERE id = 1 AND state = 'paid' RETURNING id
                )
                INSERT INTO parcels (order_id) SELECT id FROM placed",
        look: "SELECT count(*) || ' parcel' FROM parcels",
        wants: "check and effect in one statement or transaction: another write may come between two",
    },
];

const TABLES: &str = "
    CREATE TABLE stock (item text PRIMARY KEY, pieces int NOT NULL);
    INSERT INTO stock VALUES ('tea', 10), ('coffee', 10);
    CREATE TABLE addresses (customer text PRIMARY KEY, street text NOT NULL);
    CREATE TABLE payments (id text PRIMARY KEY, amount int NOT NULL);
    CREATE TABLE orders (id int PRIMARY KEY, state text NOT NULL);
    INSERT INTO orders VALUES (1, 'paid');
    CREATE TABLE parcels (order_id int NOT NULL)";

pub(crate) async fn side_by_side(pool: &PgPool) -> Result<Table> {
    sqlx::raw_sql(TABLES).execute(pool).await?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(120);
    table.set_header(["pattern", "statement", "after once", "after twice", "conditions"]);
    for pattern in PATTERNS {
        let mut seen = Vec::new();
        for _ in 0..2 {
            sqlx::query(pattern.write).execute(pool).await?;
            let state: String = sqlx::query_scalar(pattern.look).fetch_one(pool).await?;
            seen.push(state);
        }
        let statement = pattern.write.split_whitespace().collect::<Vec<_>>().join(" ");
        table.add_row([pattern.name, &statement, &seen.remove(0), &seen.remove(0), pattern.wants]);
    }
    Ok(table)
}

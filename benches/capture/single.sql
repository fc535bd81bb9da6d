\set id random(1, :rows)
\set v random(1, 1000000)
UPDATE bench.:variant SET phone = :v::text, city = 'City' || :v, score = :v WHERE _id = :id;

"""An S3 server that checks keys and signatures (moto), with one bucket and one user who may do everything in it.

s3_server.py OUTPUT writes {"url", "key", "secret"} to OUTPUT when it is ready and serves until it is killed.
"""
import json
import os
import sys
import time

import boto3
from moto import settings
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://127.0.0.1:%d" % server.get_host_and_port()[1]
anybody = dict(endpoint_url=url, region_name="us-east-1", aws_access_key_id="setup", aws_secret_access_key="setup")
boto3.client("s3", **anybody).create_bucket(Bucket="corpus")
iam = boto3.client("iam", **anybody)
iam.create_user(UserName="reader")
key = {"SecretAccessKey": ""}
while "/" not in key["SecretAccessKey"]:  # as half of AWS's own have one
    if "AccessKeyId" in key:
        iam.delete_access_key(UserName="reader", AccessKeyId=key["AccessKeyId"])
    key = iam.create_access_key(UserName="reader")["AccessKey"]
everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(everything))
settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from here on every request needs a valid signature

with open(sys.argv[1] + ".new", "w") as out:
    json.dump({"url": url, "key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}, out)
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    time.sleep(60)
